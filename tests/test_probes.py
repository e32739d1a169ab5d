"""Inputs: what the user may say, what sizes are tried, and that the same seed gives the same bytes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from bnfold.errors import NoVerdict, UsageError
from bnfold.model import Arrays, Port, Runner, Signature
from bnfold.verify.inputs import InputSpec, parse_dim, parse_input, with_inputs
from bnfold.verify.probes import FAMILIES, ProbeOptions, Probes, make_probes

Feeds = Mapping[str, NDArray[Any]]


def signature(*ports: Port) -> Signature:
    return Signature(ports, (Port("y", "float32", None),))


IMAGE = Port("image", "float32", ("batch", 3, "h", "w"))


def accepts_anything(feeds: Feeds) -> Arrays:
    return {}


def accepts(**sizes: tuple[int, ...]) -> Runner:
    """A runner that takes only some shapes."""

    def run(feeds: Feeds) -> Arrays:
        for name, shape in sizes.items():
            if feeds[name].shape[1:] != shape:
                raise NoVerdict(f"got {feeds[name].shape}")
        return {}

    return run


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("1,3,224,224", InputSpec(None, (1, 3, 224, 224), None)),
        ("image:batch,3,h,w:float16", InputSpec("image", ("batch", 3, "h", "w"), "float16")),
        ("1,3,32,32:float16", InputSpec(None, (1, 3, 32, 32), "float16")),
        ("image:1,3", InputSpec("image", (1, 3), None)),
        ("serving:0:1,8:int64", InputSpec("serving:0", (1, 8), "int64")),
        ("batch", InputSpec(None, ("batch",), None)),
        ("scalar::float32", InputSpec("scalar", (), "float32")),
    ],
)
def test_an_input_is_read(text: str, spec: InputSpec) -> None:
    assert parse_input(text) == spec


@pytest.mark.parametrize("text", ["", "1,,3", "1,-3", "0,3", "1.5,3", "image:1,3:float99", "a b,3", ":", "1;3"])
def test_nonsense_is_a_usage_error_that_shows_the_form(text: str) -> None:
    with pytest.raises(UsageError, match="DIMS") as caught:
        parse_input(text)
    assert caught.value.code == "bad-input"
    assert caught.value.hint


def test_a_dimension_is_read_or_refused() -> None:
    assert parse_dim("batch=1,2,8") == ("batch", (1, 2, 8))
    for text in ("batch", "batch=", "=1", "batch=0", "batch=a", "batch=1,,2"):
        with pytest.raises(UsageError):
            parse_dim(text)


def test_the_shape_of_the_user_is_laid_over_the_models() -> None:
    ports = signature(IMAGE, Port("mask", "int64", None))
    assert with_inputs(ports, [parse_input("mask:1,4")]).inputs == (IMAGE, Port("mask", "int64", (1, 4)))
    assert with_inputs(ports, [parse_input("2,3,8,w")]).inputs[0].shape == (2, 3, 8, "w")
    assert with_inputs(ports, [parse_input("n,c,8,w")]).inputs[0].shape == ("n", 3, 8, "w")


@pytest.mark.parametrize("text", ["other:1,3", "image:1,4,8,8", "image:1,3,8", "image:1,3,8,8:float16"])
def test_an_input_that_contradicts_the_model_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError):
        with_inputs(signature(IMAGE), [parse_input(text)])


def test_a_scalar_takes_no_axis() -> None:
    with pytest.raises(UsageError):
        with_inputs(signature(Port("scale", "float32", ())), [parse_input("scale:3")])


def test_more_inputs_than_the_model_has_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="1 inputs"):
        with_inputs(signature(IMAGE), [parse_input("1,3,8,8"), parse_input("1,3,8,8")])


def sizes_of(probes: Probes) -> list[Mapping[str, int]]:
    found: list[Mapping[str, int]] = []
    for probe in probes.probes:
        if probe.sizes not in found:
            found.append(probe.sizes)
    return found


def test_two_sizes_that_differ_in_every_axis() -> None:
    probes = make_probes(signature(IMAGE), accepts_anything, ProbeOptions())
    assert sizes_of(probes) == [{"batch": 1, "h": 32, "w": 32}, {"batch": 2, "h": 1, "w": 1}]
    assert probes.note == "at 2 sizes"


def test_one_of_the_sizes_is_the_smallest_that_is_legal_found_by_trying() -> None:
    def run(feeds: Feeds) -> Arrays:
        tried.append(feeds["image"].shape)
        batch, _, height, _ = feeds["image"].shape
        if height < 7 or height % 4 or batch > most:
            raise NoVerdict("too small, or no multiple of 4, or too many")
        return {}

    for most in (2, 1):
        tried: list[tuple[int, ...]] = []
        probes = make_probes(signature(IMAGE), run, ProbeOptions())
        assert sizes_of(probes) == [{"batch": 1, "h": 32, "w": 32}, {"batch": most, "h": 8, "w": 8}]
        assert {probe.family for probe in probes.probes if probe.sizes["h"] == 8} == set(FAMILIES)
        assert len(tried) < 80
    square = Port("x", "float32", (1, 3, "h", "w"))
    only = make_probes(signature(square), accepts(x=(3, 32, 32)), ProbeOptions())
    assert sizes_of(only) == [{"h": 32, "w": 32}], "there is no other"
    assert only.note == "at one size, with two seeds"


def test_lengths_are_tried_in_turn_and_the_static_ones_first() -> None:
    port = Port("x", "float32", ("batch", 3, 40, "w"))
    assert sizes_of(make_probes(signature(port), accepts_anything, ProbeOptions()))[0]["w"] == 40
    only = make_probes(signature(IMAGE), accepts(image=(3, 224, 224)), ProbeOptions())
    assert sizes_of(only) == [{"batch": 1, "h": 224, "w": 224}, {"batch": 2, "h": 224, "w": 224}]
    small = [probe.family for probe in only.probes if probe.sizes["batch"] == 1]
    assert small == ["normal", "border-impulse"], "large inputs are run on few"


def test_a_static_model_is_run_at_its_one_size_with_two_seeds() -> None:
    probes = make_probes(signature(Port("x", "float32", (1, 3, 8, 8))), accepts_anything, ProbeOptions())
    assert sizes_of(probes) == [{}]
    assert probes.note == "at one size, with two seeds"
    normal = [probe.feeds["x"] for probe in probes.probes if probe.family == "normal"]
    assert len(normal) == 2
    assert not np.array_equal(*normal)


def test_the_sizes_of_the_user_are_used() -> None:
    probes = make_probes(
        signature(IMAGE), accepts_anything, ProbeOptions(dims={"batch": (3,), "h": (5, 6, 7), "w": (9,)})
    )
    assert sizes_of(probes) == [{"batch": 3, "h": h, "w": 9} for h in (5, 6, 7)]
    with pytest.raises(UsageError, match="batch, h, w"):
        make_probes(signature(IMAGE), accepts_anything, ProbeOptions(dims={"height": (5,)}))


def test_no_accepted_size_is_no_verdict_with_the_reason_and_the_flag() -> None:
    with pytest.raises(NoVerdict, match="got") as caught:
        make_probes(signature(IMAGE), accepts(image=(3, 7, 9)), ProbeOptions())
    assert caught.value.hint == "--dim batch=N --dim h=N --dim w=N"
    assert "\n" not in str(caught.value)
    with pytest.raises(NoVerdict, match="rank"):
        make_probes(signature(Port("x", "float32", None)), accepts_anything, ProbeOptions())
    with pytest.raises(NoVerdict, match="string"):
        make_probes(signature(Port("x", "string", (1,))), accepts_anything, ProbeOptions())


def test_where_no_integer_is_accepted_the_values_are_asked_for() -> None:
    with pytest.raises(NoVerdict, match="got") as caught:
        make_probes(signature(Port("ids", "int64", ("batch", 4))), accepts(ids=(0, 0)), ProbeOptions())
    assert caught.value.hint == "--data inputs.npz"


def test_the_same_seed_gives_the_same_bytes() -> None:
    def hashes(seed: int) -> list[str]:
        probes = make_probes(signature(IMAGE), accepts_anything, ProbeOptions(dims={"h": (4,), "w": (4,)}, seed=seed))
        return [record.sha256 for probe in probes.probes for record in probe.records()]

    assert hashes(0) == hashes(0)
    assert hashes(0) != hashes(1)


def test_families_of_a_small_input() -> None:
    probes = make_probes(signature(Port("x", "float32", (1, 2, 4, 4))), accepts_anything, ProbeOptions()).probes
    by_family = {probe.family: probe.feeds["x"] for probe in probes}
    assert tuple(by_family) == FAMILIES
    assert all(value.dtype == np.float32 and value.shape == (1, 2, 4, 4) for value in by_family.values())
    assert np.count_nonzero(by_family["border-impulse"]) == 4
    assert by_family["border-impulse"][0, 1, 0, 0] == 1
    assert not by_family["zeros"].any()
    assert np.abs(by_family["large"]).mean() > 1000 * np.abs(by_family["small"]).mean()


def test_a_structured_input_is_smooth_and_its_channels_differ() -> None:
    port = Port("x", "float32", (2, 3, 20, 24))
    probes = make_probes(signature(port), accepts_anything, ProbeOptions()).probes
    by_family = {probe.family: probe.feeds["x"] for probe in probes}

    def roughness(values: NDArray[Any]) -> float:
        return float(np.abs(np.diff(values, axis=-1)).mean() / values.std(axis=(-1, -2)).mean())

    assert roughness(by_family["structured"]) < 0.5 < roughness(by_family["normal"])
    means = by_family["structured"].mean(axis=(-1, -2))
    assert len({round(float(mean), 3) for mean in means.reshape(-1)}) == 6
    for shape in ((), (3,), (2, 5), (0, 4, 3)):
        probes = make_probes(signature(Port("x", "float32", shape)), accepts_anything, ProbeOptions()).probes
        assert {probe.feeds["x"].shape for probe in probes if probe.family == "structured"} == {shape}


def test_a_large_input_is_run_on_few_families() -> None:
    probes = make_probes(signature(Port("x", "float32", (1, 3, 224, 224))), accepts_anything, ProbeOptions()).probes
    assert [probe.family for probe in probes] == ["normal", "border-impulse", "normal"]


def test_integers_stay_in_the_range_that_the_model_accepts() -> None:
    def run(feeds: Feeds) -> Arrays:
        if feeds["ids"].max() > 1:
            raise NoVerdict("out of the vocabulary")
        return {}

    ports = signature(Port("ids", "int64", ("batch", 16)), Port("on", "bool", ("batch",)))
    probes = make_probes(ports, run, ProbeOptions()).probes
    assert all(
        probe.feeds["ids"].dtype == np.int64 and set(probe.feeds["ids"].reshape(-1)) == {0, 1} for probe in probes
    )
    assert all(probe.feeds["on"].dtype == np.bool_ for probe in probes)


def test_bfloat16_is_made_and_hashed() -> None:
    probes = make_probes(signature(Port("x", "bfloat16", (2, 3))), accepts_anything, ProbeOptions()).probes
    assert probes[0].feeds["x"].dtype == ml_dtypes.bfloat16
    assert len(probes[0].records()[0].sha256) == 64


def test_data_of_the_user(tmp_path: Path) -> None:
    x = np.arange(24, dtype=np.float64).reshape(2, 3, 2, 2)
    np.save(tmp_path / "a.npy", x)
    np.savez(tmp_path / "b.npz", image=x[:1])
    probes = make_probes(signature(IMAGE), accepts_anything, ProbeOptions(data=tmp_path))
    own, seeded = probes.probes[:2], probes.probes[2:]
    assert [probe.family for probe in own] == ["data:a.npy", "data:b.npz"]
    assert own[0].feeds["image"].dtype == np.float32
    assert own[1].feeds["image"].shape == (1, 3, 2, 2)
    assert {probe.family for probe in seeded} == set(FAMILIES), "the families are run as well"
    assert probes.note == f"on 2 inputs of {tmp_path.name} and at 2 sizes"
    alone = make_probes(signature(IMAGE), accepts(image=(9, 9, 9)), ProbeOptions(data=tmp_path))
    assert [probe.family for probe in alone.probes] == ["data:a.npy", "data:b.npz"], "no size was found for them"


def test_data_that_does_not_fit_is_a_usage_error(tmp_path: Path) -> None:
    np.save(tmp_path / "shape.npy", np.zeros((2, 4, 2, 2)))
    np.savez(tmp_path / "count.npz", a=np.zeros(1), b=np.zeros(1))
    np.savez(tmp_path / "name.npz", pixels=np.zeros((2, 3, 2, 2)))
    (tmp_path / "text.npy").write_text("hello")
    (tmp_path / "empty").mkdir()
    for name in ("shape.npy", "count.npz", "name.npz", "text.npy", "empty", "missing.npy"):
        with pytest.raises(UsageError) as caught:
            make_probes(signature(IMAGE), accepts_anything, ProbeOptions(data=tmp_path / name))
        assert caught.value.code == "bad-data"
        assert ("np.savez(path, name=array)" in str(caught.value.hint)) == name.endswith(".npz")


def test_an_empty_batch_has_no_border() -> None:
    empty = Signature((Port("x", "float32", (0, 4, 3, 3)),), ())
    probes = make_probes(empty, lambda feeds: {}, ProbeOptions())
    assert {probe.feeds["x"].shape for probe in probes.probes} == {(0, 4, 3, 3)}
