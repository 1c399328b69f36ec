"""The page: whole, self-contained, honest about what was not measured, and safe with anyone's text."""

import json
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from tests.compiler.report.results import made_up
from tests.conftest import tiny_coda
from transformers import PreTrainedTokenizerFast

from coda_compile import CompileOptions, compile
from coda_compile.bench.machine import this_machine
from coda_compile.bench.result import BenchResult
from coda_compile.cli.main import main
from coda_compile.errors import CodaError
from coda_compile.report.page import make_report
from coda_compile.report.routing_map import route_text
from coda_models import CodaConfig
from coda_targets import Bundle, BundleError

SECTIONS = ["latency", "speed-up", "time", "size", "passes", "parity-section", "routing-section", "reproduce"]


class Page(HTMLParser):
    """What stands in a page: text outside of scripts, attributes, figures."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.sections: list[str] = []
        self.addresses: list[str] = []
        self._scripts: dict[str, str] = {}
        self._script = ""
        self._inside: list[str] = []
        self.feed(text)
        self.figures = {key: json.loads(data) for key, data in self._scripts.items()}
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attributes}
        self._inside += [tag] if tag in ("script", "style") else []
        self._script = given.get("data-for", "") if tag == "script" else ""
        self.sections += [given["id"]] if tag == "section" else []
        self.addresses += [given[name] for name in ("src", "href", "action") if name in given]

    def handle_endtag(self, tag: str) -> None:
        if tag in ("script", "style"):
            self._inside.pop()
            self._script = ""

    def handle_data(self, data: str) -> None:
        if self._script:
            self._scripts[self._script] = self._scripts.get(self._script, "") + data
        elif not self._inside:
            self.words.append(data)


def written(result: BenchResult, tmp_path: Path) -> Path:
    path = tmp_path / "bench.json"
    path.write_text(result.dump())
    return path


@pytest.fixture(scope="module")
def full(compiled: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Page:
    """With everything that can be given."""
    folder = tmp_path_factory.mktemp("report")
    result = made_up(machine=replace(this_machine(), cpu="Elsewhere 9000"))
    data = folder / "data.csv"
    data.write_text("text,label\ngood film,0\nbad plot,1\n")
    output = folder / "page.html"
    make_report(
        compiled,
        output,
        bench=written(result, folder),
        text="good film , bad plot </script><b>",
        data=data,
        threads=1,
        command="coda-compile report it",
    )
    assert sorted(path.name for path in folder.iterdir()) == ["bench.json", "data.csv", "page.html"]
    return Page(output.read_text("utf-8"))


@pytest.fixture(scope="module")
def bare(compiled: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Page:
    """Of a bundle alone."""
    output = tmp_path_factory.mktemp("report") / "page.html"
    make_report(compiled, output, threads=1)
    return Page(output.read_text("utf-8"))


def test_every_section_is_there_with_its_figures(full: Page, bare: Page):
    assert full.sections == bare.sections == SECTIONS
    always = {"time-layers", "time-operators", "parity", "routing"}
    assert set(bare.figures) == always
    assert set(full.figures) == always | {
        *("latency-1-128", "latency-1-512", "speed-up-tokens", "speed-up-r", "memory"),
    }


def test_nothing_points_outside(full: Page):
    assert all(address.startswith("#") for address in full.addresses)


def test_the_verdict_leads(full: Page):
    assert full.text.startswith("bundle: 1.37× faster than the dense model at 512 tokens")
    assert "Speed-up 1.37×, 95 % interval 1.3" in full.text
    assert "against 300 ms in onnxruntime fp32, batch 1, 2 threads, r = 2." in full.text
    assert "1.18× slower than the fastest dense contender, optimum int8; 95 % interval 0.8" in full.text


def test_another_machine_is_named(full: Page, compiled: Bundle, tmp_path: Path):
    assert "The benchmark is from another machine than the rest of this page: CPU: " in full.text
    assert "Elsewhere 9000 there" in full.text
    make_report(compiled, tmp_path / "here.html", bench=written(made_up(), tmp_path))
    assert "from another machine" not in (tmp_path / "here.html").read_text("utf-8")


def test_what_was_not_measured_says_how(bare: Page):
    assert "its latency against the dense model has not been measured" in bare.text.lower()
    assert bare.text.count("coda-compile bench MODEL --json bench.json measures it") == 3
    assert "--data FILE.csv measures it" in bare.text


def test_contenders_that_were_skipped_are_named(full: Page):
    assert "Not measured: OpenVINO, because openvino is not installed" in full.text


def test_passes_fusions_parity_and_files_are_told(bare: Page, compiled: Bundle):
    for word in ("fold_constants", "changed no operator count", "FusedGemm"):
        assert word in bare.text
    for file in compiled.manifest.files:
        assert f"{file.path} {file.sha256}" in bare.text
    assert "Every kernel could be traced back to its layer." in bare.text
    assert "3 x 37 tokens, ragged" in bare.text


def test_a_pass_that_found_nothing_says_so(copied: Path, tmp_path: Path):
    report = json.loads((copied / "report.json").read_text())
    report["variants"]["cpu"]["passes"][0] |= {"modified": False, "operators": {}}
    report["variants"]["cpu"]["passes"][1] |= {"declined": {"too wide": 3}}
    _replace_report(copied, report)
    make_report(Bundle(copied), tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text("utf-8")
    assert "found nothing to change" in text
    assert "; declined 3: too wide" in text


def _replace_report(folder: Path, report: dict[str, object]) -> None:
    from coda_targets.bundle_files import list_files
    from coda_targets.manifest import MANIFEST, read_manifest

    (folder / "report.json").write_text(json.dumps(report))
    manifest = read_manifest(folder)
    (folder / MANIFEST).write_text(replace(manifest, files=list_files(folder)).dump())


def test_text_is_escaped_everywhere(full: Page):
    assert "</script><b>" not in full.text.replace(" ", "") or "<b>" not in full.words
    words = full.figures["routing"]["layout"]["xaxis"]["ticktext"]
    assert "script" in words
    assert not any("<" in word for word in words)


def test_names_cannot_end_a_script(compiled: Bundle, tmp_path: Path):
    result = made_up()
    evil = "</script><script>alert(1)</script>"
    rows = tuple(replace(m, contender=evil) if m.contender == "torch eager" else m for m in result.measurements)
    output = make_report(
        compiled, tmp_path / "page.html", bench=written(replace(result, measurements=rows, model=evil), tmp_path)
    )
    assert "<script>alert" not in output.read_text("utf-8")


def test_accuracy_stands_beside_the_routing(full: Page):
    assert re.search(r"\d+\.\d % of 2 texts of data\.csv were labelled right", full.text)
    assert full.text.index("What the routers do") < full.text.index("of data.csv were labelled")


def test_a_benchmark_of_other_reductions_is_told(compiled: Bundle, tmp_path: Path):
    bench = written(made_up(reductions=("4",)), tmp_path)
    page = Page(make_report(compiled, tmp_path / "page.html", bench=bench).read_text("utf-8"))
    assert "The benchmark measured no model at this bundle's r = 2." in page.text
    assert "speed-up-r" not in page.figures


@pytest.mark.parametrize(
    ("factor", "line"),
    [(3.0, "2.20× slower than"), (1.364, "Neither faster nor slower than")],
)
def test_slower_is_called_slower(factor: float, line: str, compiled: Bundle, tmp_path: Path):
    def slowed(value):  # type: ignore[no-untyped-def]
        return replace(value, middle=value.middle / factor, low=value.low / factor, high=value.high / factor)

    result = made_up(reductions=("2",))
    rows = tuple(replace(m, speed_up={r: slowed(v) for r, v in m.speed_up.items()}) for m in result.measurements)
    page = make_report(compiled, tmp_path / "p.html", bench=written(replace(result, measurements=rows), tmp_path))
    assert line in Page(page.read_text("utf-8")).text


def test_a_benchmark_without_dense_contenders_gives_no_speed_up(compiled: Bundle, tmp_path: Path):
    result = made_up()
    own = tuple(m for m in result.measurements if not m.speed_up)
    page = make_report(compiled, tmp_path / "p.html", bench=written(replace(result, measurements=own), tmp_path))
    assert "fewer multiply-adds than the dense model" in Page(page.read_text("utf-8")).text


def test_a_benchmark_of_another_model_is_refused(compiled: Bundle, tmp_path: Path):
    bench = written(replace(made_up(), model_sha256="0" * 64), tmp_path)
    with pytest.raises(
        CodaError, match=r"bench\.json measured 'my model\.pt', another model than .* was compiled from"
    ):
        make_report(compiled, tmp_path / "page.html", bench=bench)
    assert not (tmp_path / "page.html").exists()


def test_a_benchmark_without_measurements_is_refused(compiled: Bundle, tmp_path: Path):
    empty = written(replace(made_up(), measurements=()), tmp_path)
    with pytest.raises(CodaError, match="holds no measurements"):
        make_report(compiled, tmp_path / "p.html", bench=empty)


def test_a_dense_bundle_routes_nothing(tokenizer: PreTrainedTokenizerFast, tmp_path: Path):
    bundle = compile(
        tiny_coda("bert", CodaConfig(reduction=1)), CompileOptions(tokenizer=tokenizer), output=tmp_path / "b"
    )
    page = Page(make_report(bundle, tmp_path / "p.html", threads=1).read_text("utf-8"))
    assert "The dense model: no layer routes" in page.text
    assert "Every layer is dense: nothing is routed." in page.text
    assert "routing" not in page.figures


def test_layers_that_route_differently_are_told(tokenizer: PreTrainedTokenizerFast, tmp_path: Path):
    bundle = compile(
        tiny_coda("bert", CodaConfig(reduction=(2, 4))), CompileOptions(tokenizer=tokenizer), output=tmp_path / "b"
    )
    slots = [layer.slots for layer in bundle.manifest.layers]
    page = Page(make_report(bundle, tmp_path / "p.html", threads=1).read_text("utf-8"))
    assert slots[0] > slots[1]
    assert f"{slots[1]} to {slots[0]} of {bundle.manifest.signature.max_length} in 2 of 2 layers" in page.text


def test_a_bundle_without_tokenizer_has_a_page(tmp_path: Path):
    bundle = compile(tiny_coda("bert", CodaConfig(reduction=2)), output=tmp_path / "b")
    page = Page(make_report(bundle, tmp_path / "p.html", threads=1).read_text("utf-8"))
    assert "holds no tokenizer" in page.text
    with pytest.raises(BundleError, match="holds no tokenizer"):
        make_report(bundle, tmp_path / "q.html", text="a text", threads=1)


@pytest.mark.parametrize(("text", "message"), [("", "holds no words"), ("  ", "holds no words"), ("\udcff", "UTF-8")])
def test_texts_that_cannot_be_routed(text: str, message: str, compiled: Bundle):
    with pytest.raises(CodaError, match=message):
        route_text(compiled, text)


def test_heavy_counts_layers(compiled: Bundle):
    routed = route_text(compiled, "good film bad plot")
    assert routed.words.words == ["good", "film", "bad", "plot"]
    assert all(0 <= count <= 2 for count in routed.heavy)
    assert sum(routed.heavy) == sum(sum(flags) for _, flags in routed.words.layers)


def test_outputs_that_cannot_be_written(compiled: Bundle, tmp_path: Path):
    with pytest.raises(CodaError, match="is a folder: name a file in it"):
        make_report(compiled, tmp_path)
    with pytest.raises(CodaError, match="none does not exist: make it, or write page.html elsewhere"):
        make_report(compiled, tmp_path / "none" / "page.html")


def test_a_failure_keeps_the_old_page(compiled: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    output = tmp_path / "page.html"
    output.write_text("<old>")

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full_disk)
    with pytest.raises(CodaError, match="no space left"):
        make_report(compiled, output, threads=1)
    assert output.read_text() == "<old>"
    assert list(tmp_path.iterdir()) == [output]


def test_what_is_no_page_is_not_written_over(copied: Path):
    before = (copied / "model.onnx").read_bytes()
    with pytest.raises(CodaError, match=r"model\.onnx exists and is no earlier result: remove it, or write elsewhere"):
        make_report(Bundle(copied), copied / "model.onnx")
    assert (copied / "model.onnx").read_bytes() == before


def test_damaged_bundles_are_refused(copied: Path, tmp_path: Path):
    (copied / "report.json").write_text('{"schema_version": 1, "passes": []}')
    with pytest.raises(BundleError, match=r"report\.json is damaged: .*`pruning`; compile the model again"):
        make_report(Bundle(copied), tmp_path / "page.html")


def test_the_command_writes_beside_the_bundle(
    copied: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(sys, "argv", ["coda-compile", "report", str(copied), "--threads", "1"])
    main()
    page = copied.with_name("bundle-report.html")
    assert capfd.readouterr().out.startswith(f"{page}: ")
    assert f"coda-compile report {copied}" in page.read_text("utf-8")
    Bundle(copied).check()
