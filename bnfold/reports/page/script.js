// Searches the table of affines: rows that hold every word, and the outcome that is chosen.
(() => {
  const form = document.getElementById("search");
  if (!form) return;
  const rows = [...document.getElementById("affines").tBodies[0].rows];
  const texts = rows.map((row) => row.textContent.toLowerCase());
  const search = () => {
    const words = form.elements.words.value.toLowerCase().split(/\s+/);
    const outcome = form.elements.outcome.value;
    rows.forEach((row, index) => {
      const fits = words.every((word) => texts[index].includes(word));
      row.hidden = !(fits && (outcome === "" || row.className === outcome));
    });
    form.elements.found.value = `${rows.filter((row) => !row.hidden).length} of ${rows.length} rows`;
  };
  form.addEventListener("input", search);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.hidden = false;
  search();
})();
