// What scrolls can be reached by the keyboard, and what the theme leaves without a name of its own gets one.
window.addEventListener("load", () => {
  for (const each of document.querySelectorAll("pre > code, .md-typeset__scrollwrap, .md-typeset__table")) each.tabIndex = 0;
  document.querySelector(".md-search")?.setAttribute("aria-label", "Search");
  document.querySelectorAll(".md-code__nav").forEach((nav, index) => nav.setAttribute("aria-label", `Code ${index + 1}`));
  document.querySelectorAll("nav nav[aria-labelledby]").forEach((nav, index) => {
    const label = document.getElementById(nav.getAttribute("aria-labelledby"))?.textContent.trim() || "Section";
    nav.removeAttribute("aria-labelledby");
    nav.setAttribute("aria-label", `${label}, ${index + 1}`);
  });
});
