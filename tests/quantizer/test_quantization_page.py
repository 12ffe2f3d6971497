"""quantization_report.html: its figures are the report's, it needs nothing, and it can be read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest

import awq_edge
from awq_edge.quantizer.report.charts import gain_db
from awq_edge.quantizer.report.page import PAGE_FILE, WORST, quantization_page
from awq_edge.quantizer.report.schema import LinearReport, Method, QuantizationReport, summarise
from tests.html.html_page import Page

from .reports import PERPLEXITY, made_up_report

GAIN = "Gain over round-to-nearest in dB, by block and kind of linear"
EXPONENT = "Exponent of the chosen scale by block for each scale group"
CLIP = "Share of clipped groups, by block and kind of linear"
HOSTILE = "</title><script src=http://x>alert('1')</script>\"&$x^{$\\frac\x00<b>"


def linears(report: QuantizationReport) -> list[tuple[int, LinearReport]]:
    return [(block.layer, linear) for block in report.blocks for linear in block.linears]


@pytest.fixture(scope="module", params=get_args(Method))
def checkpoint(
    request: pytest.FixtureRequest, tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A checkpoint of every method."""
    out = tmp_path_factory.mktemp("page") / "checkpoint"
    recipe = awq_edge.load_recipe(method=request.param, group_size=32, samples=4, length=32)
    return awq_edge.quantize(tiny_llama, out, recipe).path


def test_page_of_a_real_checkpoint(checkpoint: Path) -> None:
    report = QuantizationReport.model_validate_json(
        (checkpoint / "quantization_report.json").read_bytes()
    )
    text = (checkpoint / PAGE_FILE).read_text(encoding="utf-8")
    assert text == quantization_page(report)
    page = Page(text)
    assert page.headings[0] == "tiny-llama"
    ranked = sorted(linears(report), key=lambda pair: -(pair[1].relative_mse or 0))
    assert len(ranked) == 14
    _, *rows = page.tables["worst"]
    assert len(rows) == WORST
    assert_rows_are(rows, ranked[:WORST], report.method)
    assert_rows_are(page.tables["every"][1:], linears(report), report.method)
    facts = dict(page.tables["facts"])
    assert facts["method"] == report.method
    assert facts["format"] == "4-bit, groups of 32, asymmetric"
    assert facts["made"] == report.time and facts["inputs, sha256"] == report.inputs_sha256
    for name, version in report.versions.items():
        assert f"{name} {version}" in facts["versions"]
    phases = re.findall(r"(\w+) ([\d.]+)%", facts.get("time by phase", ""))
    assert {name for name, _ in phases} == set(report.blocks[0].seconds_by_phase)
    assert sum(float(share) for _, share in phases) == pytest.approx(100, abs=1)
    if report.calibration is None:
        assert report.method == "rtn" and "weights" in facts["calibration"]
    else:
        assert "4 sequences of 32 tokens, seed 0" in facts["calibration"]
        assert facts["calibration tokens, sha256"] == report.calibration.sha256


def assert_rows_are(
    rows: list[list[str]], expected: list[tuple[int, LinearReport]], method: str
) -> None:
    """The rows of a table are those linears, with the report's figures."""
    for row, (layer, linear) in zip(rows, expected, strict=True):
        assert row[:2] == [str(layer), linear.name]
        found = [float(cell) for cell in row[2:4]]
        # To the digits that are shown.
        assert found[0] == pytest.approx(linear.relative_mse, rel=1e-3)
        assert found[1] == pytest.approx(linear.sqnr_db, abs=0.006)
        assert float(row.pop()) == pytest.approx(linear.nf4_sqnr_db, abs=0.006)
        if method == "rtn":
            assert len(row) == 4
            continue
        assert float(row[4]) == pytest.approx(linear.rtn_relative_mse, rel=1e-3)
        assert float(row[5]) == pytest.approx(linear.rtn_sqnr_db, abs=0.006)
        assert float(row[6]) == pytest.approx(gain_db(linear), abs=0.006)
        assert ("gptq" in row[7]) == linear.gptq
        if linear.exponent is not None:
            assert row[7].startswith(f"{linear.exponent:.2f}, ")
            assert ("weight-aware" in row[7]) == linear.weight_aware
        assert ("fell back" in row[7]) == linear.fell_back
        assert row[8] == f"{linear.clip_share:.1%}"


def test_what_a_method_does_not_have_is_not_shown(checkpoint: Path) -> None:
    text = (checkpoint / PAGE_FILE).read_text(encoding="utf-8")
    page, method = Page(text), dict(Page(text).tables["facts"])["method"]
    has_scales = "awq" in method
    assert ("Gain over round-to-nearest" in page.headings) == (method != "rtn")
    assert ("Chosen scales" in page.headings) == has_scales
    assert ("Clipped groups" in page.headings) == has_scales
    assert "Error by block" in page.headings
    assert "Perplexity" not in page.headings


@pytest.mark.parametrize("method", get_args(Method))
def test_page_loads_nothing_and_runs_nothing(method: Method) -> None:
    assert_self_contained(quantization_page(made_up_report(3, method=method)))


def assert_self_contained(text: str) -> None:
    page = Page(text)
    assert page.links == []
    assert not {"script", "link", "img", "iframe", "object", "embed"} & set(page.tags)
    assert "http://" not in text and "https://" not in text and "@import" not in text
    assert len(page.ids) == len(set(page.ids))
    assert set(page.targets) <= set(page.ids)
    assert "default-src 'none'" in text


def test_charts_have_no_colour_of_their_own() -> None:
    """All of them are the page's variables: light and dark mode and print follow."""
    text = quantization_page(made_up_report(3))
    charts = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert len(charts) > 5
    for chart in charts:
        assert not re.search(
            r"#[0-9a-fA-F]{3,8}\b(?![-\w])", re.sub(r"[\"(]#[\w-]+[\")]", "", chart)
        )
        assert "rgb(" not in chart
        colours = re.findall(r"(?:fill|stroke): ([^;\"]+)", chart)
        assert colours and {c for c in colours if not c.startswith("var(--")} <= {"none"}
    defined = set(re.findall(r"(--[a-z]+):", text))
    assert set(re.findall(r"var\((--[a-z]+)\)", text)) <= defined


def test_charts_show_every_figure() -> None:
    report = made_up_report(5)
    tips = Page(quantization_page(report)).tips
    for layer, linear in linears(report):
        gain = gain_db(linear)
        assert f"block {layer}, {linear.name}: {gain:+.2f} dB" in tips[GAIN]
        clip = f"block {layer}, {linear.name}: {linear.clip_share:.1%} of the groups clipped"
        assert clip in tips[CLIP]
        (tip,) = [t for t in tips[EXPONENT] if t.startswith(f"block {layer}, {linear.group}: ")]
        if linear.fell_back:
            assert "fell back" in tip
        elif linear.exponent is None:
            assert tip.endswith("s = 1 was the best")
        else:
            form = "weight-aware" if linear.weight_aware else "plain"
            assert tip.endswith(f"exponent {linear.exponent:.2f}, {form}")
    assert len(tips[EXPONENT]) == 5 * 4  # one a scale group, not one a linear
    assert f"block 4: {report.blocks[4].seconds:.2f} s" in tips["Seconds by block"]


def test_error_lines_have_the_heights_of_the_figures() -> None:
    """Points of the first panel's own line, read back from the drawing."""
    report = made_up_report(4)
    text = quantization_page(report)
    chart = re.search(r"<svg[^>]*aria-label=\"SQNR.*?</svg>", text, re.DOTALL)
    assert chart is not None
    panel = chart[0][chart[0].index('id="error-axes_1"') : chart[0].index('id="error-axes_2"')]
    # The panel draws round-to-nearest first, then the method.
    paths = re.findall(r'<path d="(M[^"]*)"[^>]*style="fill: none; stroke: var\(--series\)', panel)
    (path,) = (p for p in paths if "C" not in p)
    drawn = [float(y) for _, y in re.findall(r"[ML] ([\d.]+) ([\d.]+)", path)]
    figures = [linear.sqnr_db for _, linear in linears(report) if linear.name.endswith("q_proj")]
    assert len(drawn) == len(figures) == 4
    # SVG counts downwards; two points give the scale, the others must be on it.
    (low, low_y), *others = sorted(zip(figures, drawn, strict=True))
    high, high_y = others[-1]
    for figure, y in others:
        share = (figure - low) / (high - low)
        assert y == pytest.approx(low_y + share * (high_y - low_y), abs=1e-3)
    assert high_y < low_y


def test_a_report_without_nf4_has_no_sign_of_it() -> None:
    report = made_up_report(2)
    assert "NF4" in quantization_page(report)
    blocks = tuple(
        block.model_copy(
            update={
                "linears": tuple(
                    linear.model_copy(update={"nf4_relative_mse": None, "nf4_sqnr_db": None})
                    for linear in block.linears
                )
            }
        )
        for block in report.blocks
    )
    old = report.model_copy(update={"blocks": blocks, "summary": summarise(blocks)})
    assert "NF4" not in quantization_page(old)


def test_perplexities_are_a_table() -> None:
    report = made_up_report(2).model_copy(update={"perplexities": (PERPLEXITY,)})
    page = Page(quantization_page(report))
    assert page.tables["perplexities"][1] == [
        *("wiki.txt", "123,456", "1024, 512", "5.4721", "5.6013", "+0.1292 (+2.36%)")
    ]


def test_a_page_is_the_same_whatever_the_users_matplotlib_is_set_to() -> None:
    import matplotlib

    report = made_up_report(2)
    text = quantization_page(report)
    with matplotlib.rc_context({"font.size": 30, "axes.grid": True, "svg.fonttype": "path"}):
        assert quantization_page(report) == text


def hostile_report() -> QuantizationReport:
    """Every text that comes from outside is an attack, or breaks XML."""
    report = made_up_report(2, name=HOSTILE)
    block = report.blocks[0]
    named = block.linears[0].model_copy(update={"name": HOSTILE, "group": HOSTILE})
    left = block.linears[1].model_copy(
        update={"relative_mse": None, "sqnr_db": None, "quantized": False, "reason": HOSTILE}
    )
    blocks = (block.model_copy(update={"linears": (named, left, *block.linears[2:])}),)
    return report.model_copy(
        update={
            "blocks": blocks + report.blocks[1:],
            "unquantized": {HOSTILE: HOSTILE},
            "versions": {HOSTILE: HOSTILE},
            "commit": HOSTILE,
            "device": HOSTILE,
            "perplexities": (PERPLEXITY.model_copy(update={"text": HOSTILE}),),
        }
    )


def test_hostile_names_are_text() -> None:
    text = quantization_page(hostile_report())
    page = Page(text)
    assert page.headings[0] == HOSTILE
    assert page.links == []
    assert "script" not in page.tags and "b" not in page.tags
    assert any("<script" in tip for tip in page.tips[GAIN])
    assert page.tables["unquantized"][1][2].startswith("</title><script")
    assert len(page.ids) == len(set(page.ids)) and set(page.targets) <= set(page.ids)


def test_seventy_billion_parameters_stay_readable() -> None:
    """80 blocks: below 2 MB, labels that do not run into each other, no text in narrow cells."""
    text = quantization_page(made_up_report(80))
    assert len(text.encode()) < 2_000_000
    page = Page(text)
    assert_self_contained(text)
    assert len(page.tips[GAIN]) == 560 and len(page.tables["every"]) == 561
    for chart in re.findall(r"<svg[^>]*aria-label=.*?</svg>", text, re.DOTALL):
        # Columns are named by their numbers: at most 24 of them in a chart of the whole width.
        by_height: dict[str, list[float]] = {}
        for x, y in re.findall(r'<text[^>]* x="([\d.]+)" y="([\d.]+)"[^>]*>\d+</text>', chart):
            by_height.setdefault(y, []).append(float(x))
        for places in by_height.values():
            gaps = [b - a for a, b in zip(sorted(places), sorted(places)[1:], strict=False)]
            assert all(gap > 15 for gap in gaps)  # points: two digits are some 11 wide


def test_experts_are_drawn_together() -> None:
    report = made_up_report(3, experts=64)
    text = quantization_page(report)
    page = Page(text)
    assert len(text.encode()) < 1_000_000
    assert "mlp.experts.*.down_proj</text>" in text
    assert "mlp.experts.63.down_proj</text>" not in text
    assert len(page.tips[GAIN]) == 3 * 7
    assert "every" in page.tables
    values = sorted(
        gain_db(linear) or 0.0
        for linear in report.blocks[1].linears
        if linear.name.endswith("down_proj")
    )
    median = (values[31] + values[32]) / 2
    assert f"block 1, mlp.experts.*.down_proj: {median:+.2f} dB" in page.tips[GAIN]
    # Their exponents are a line and a range, those of attention single marks.
    assert {tip.split(": ")[0].split(", ")[1] for tip in page.tips[EXPONENT]} == {
        "attention_in",
        "attention_out",
        "mlp_in",
    }


def test_thousands_of_linears_have_no_table_of_all() -> None:
    page = Page(quantization_page(made_up_report(12, experts=64)))
    assert "every" not in page.tables and len(page.tables["worst"]) == 1 + WORST


def test_a_model_of_which_nothing_was_quantized() -> None:
    report = made_up_report(1)
    left = tuple(
        LinearReport(name=linear.name, quantized=False, reason="does not fit")
        for linear in report.blocks[0].linears
    )
    blocks = (report.blocks[0].model_copy(update={"linears": left}),)
    names = {f"model.layers.0.{linear.name}": "does not fit" for linear in left}
    page = Page(
        quantization_page(report.model_copy(update={"blocks": blocks, "unquantized": names}))
    )
    assert "worst" not in page.tables and "Error by block" not in page.headings
    assert [row[0] for row in page.tables["unquantized"][1:]] == [
        f"model.layers.*.{linear.name}" for linear in left
    ]


def test_linears_that_no_token_reached_have_no_error() -> None:
    """Experts that were never chosen: quantized, with nothing to compare."""
    report = made_up_report(2, experts=4)
    silent = (
        report.blocks[0]
        .linears[-1]
        .model_copy(
            update={
                **dict.fromkeys(
                    ("relative_mse", "sqnr_db", "rtn_relative_mse", "rtn_sqnr_db", "nf4_sqnr_db")
                ),
                "name": "mlp.last",
            }
        )
    )
    block = report.blocks[0].model_copy(
        update={
            "linears": (*report.blocks[0].linears[:-1], silent),
            "silent_inputs": ("mlp_in.2", "mlp_in.3"),
        }
    )
    page = Page(quantization_page(report.model_copy(update={"blocks": (block, report.blocks[1])})))
    assert dict(page.tables["facts"])["reached by no calibration token"] == "mlp_in.*: 2 inputs"
    (row,) = (row for row in page.tables["every"] if row[1] == "mlp.last")
    assert [*row[2:7], row[-1]] == ["-"] * 6
    assert "block 0, mlp.last: no calibration token reached it" in page.tips[GAIN]
    assert "mlp.last" not in [row[1] for row in page.tables["worst"]]


def test_a_linear_without_noise_does_not_stretch_the_charts() -> None:
    report = made_up_report(2)
    exact = report.blocks[0].linears[0].model_copy(update={"relative_mse": 0.0, "sqnr_db": 300.0})
    linears_of = (exact, *report.blocks[0].linears[1:])
    blocks = (report.blocks[0].model_copy(update={"linears": linears_of}), report.blocks[1])
    text = quantization_page(report.model_copy(update={"blocks": blocks}))
    assert Page(text).tables["every"][1][3] == "exact"
    assert ">300</text>" not in text and ">100</text>" not in text
