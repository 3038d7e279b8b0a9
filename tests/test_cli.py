"""The command line: what it refuses, in which words, and what it leaves behind."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

import bifocal
import tiny
from bifocal.cli import COMMANDS, NOTES, main, notes_in_a_sentence, parse
from bifocal.data.pictures import read_picture


def black(side: int) -> bytes:
    """A PNG of so many pixels each way."""
    written = io.BytesIO()
    Image.new("1", (side, side)).save(written, "PNG")
    return written.getvalue()


class Ended:
    """How a command ended."""

    def __init__(self, status: int, out: str, err: str) -> None:
        self.status, self.out, self.err = status, out, err


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]):
    """Runs a command line in this process."""

    def go(*words: str | Path) -> Ended:
        capsys.readouterr()
        try:
            status = main([str(word) for word in words])
        except SystemExit as ended:
            status = int(ended.code or 0)
        captured = capsys.readouterr()
        return Ended(status, captured.out, captured.err)

    return go


@pytest.fixture(autouse=True)
def _empty_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Default output directories lie in a directory of the test's own."""
    monkeypatch.chdir(tmp_path)


def one_sentence(ended: Ended) -> str:
    """The refusal: one line on standard error that names the program, nothing on standard output."""
    assert ended.status == 2
    assert ended.out == ""
    assert ended.err.startswith("bifocal: ") and ended.err.count("\n") == 1
    return ended.err


def test_the_list_of_commands(run) -> None:
    for words in ([], ["--help"], ["-h"], ["help"]):
        ended = run(*words)
        assert ended.status == 0
        assert all(f"bifocal {name}" in ended.out for name in COMMANDS)


def test_the_version(run) -> None:
    assert run("--version").out.strip() == bifocal.__version__


@pytest.mark.parametrize("words", [["data"], ["data", "--help"]])
def test_a_group_of_commands_shows_them(run, words: list[str]) -> None:
    ended = run(*words)
    assert ended.status == 0
    assert "bifocal data scenes" in ended.out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example(run, name: str) -> None:
    ended = run(*name.split(), "--help")
    assert ended.status == 0
    assert f"Example: bifocal {name}" in " ".join(ended.out.replace("│", " ").split())


@pytest.mark.parametrize("name", COMMANDS)
def test_an_example_is_read_as_it_stands(name: str) -> None:
    # its flags must exist: those of the command, or settings of the recipe
    import shlex

    from bifocal.config import apply_overrides, parse_flags
    from bifocal.recipes.vlm import recipe_vlm

    (line,) = [line for line in (COMMANDS[name].__doc__ or "").splitlines() if "Example:" in line]
    words = shlex.split(line.split("Example: bifocal ")[1])[len(name.split()) :]
    _, settings = parse(name, words)
    apply_overrides(recipe_vlm("smoke"), parse_flags(settings))


def test_an_unknown_command_is_refused_with_the_nearest(run) -> None:
    assert "no command 'quikstart' (did you mean 'quickstart'?)" in one_sentence(run("quikstart"))
    assert "see bifocal --help" in one_sentence(run("zzzz"))


def test_an_unknown_setting_is_refused_with_the_nearest_and_nothing_is_written(run, tmp_path: Path) -> None:
    said = one_sentence(run("train", "vqvae", "--smoke", "--train.stepz", "3"))
    assert "train.stepz" in said and "train.steps" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("flag", "near"), [("--smok", "--smoke"), ("--scal", "--scale")])
def test_an_unknown_flag_is_refused_with_the_nearest_and_nothing_is_written(
    run, tmp_path: Path, flag: str, near: str
) -> None:
    assert f"{flag} (did you mean {near}?)" in one_sentence(run("quickstart", flag))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "vqvae", "--train.batch", "x"], "train.batch"),
        (["train", "vqvae", "--batch-size", "many"], "batch_size: expected an integer, got 'many'"),
        (["train", "vqvae", "--batch-size"], "--batch-size needs a value"),
        (
            ["train", "vqvae", "--model.picture-size", "128"],
            "world.picture_size is 64 and model.picture_size 128",
        ),
        (["train", "vqvae", "stray"], "unexpected word 'stray'"),
        (["train", "vqvae", "--steps", "0"], "train.steps must be at least 1, got 0"),
        (["train", "vqvae", "--steps", "3", "--train.steps", "4"], "--steps and --train.steps are the same"),
        (["train", "vqvae", "--family", "discrete"], "--family is for vlm, not for vqvae"),
        (
            ["train", "clip", "--vision", "nowhere"],
            "--vision is for vlm, vlm-smollm, prior, parti, not for clip",
        ),
        (
            ["train", "prior", "--smoke"],
            "a prior is over the codes of a VQ-VAE: name its run with --vision RUN",
        ),
        (["train", "vqvae", "--batch-size", "0"], "batch_size must be at least 1, got 0"),
        (["train", "clip", "--batch-size", "0"], "batch_size must be at least 1, got 0"),
        (["train", "clip", "--text-tokens", "-1"], "text_tokens must be at least 1, got -1"),
        (["train", "prior", "--episodes", "0"], "episodes must be at least 1, got 0"),
        (
            ["train", "vlm", "--batch-size", "0", "--row-length", "-3", "--episodes", "0"],
            "batch_size must be at least 1, got 0; row_length must be at least 1, got -3; episodes must be",
        ),
        (["train", "clip", "--seed", "-1"], "train.seed must be at least 0, got -1"),
        (["quickstart", "--seed", "-1"], "train.seed must be at least 0, got -1"),
        (["data", "scenes", "--out", "scenes", "--count", "-5"], "--count must be at least 1, got -5"),
        (["data", "scenes", "--out", "scenes", "--count", "0"], "--count must be at least 1, got 0"),
        (["train", "vqvae", "--tower", "resnet"], "--tower is for clip, not for vqvae"),
        (["train", "vlm", "--smoke"], "stands on a CLIP: name its run with --vision RUN"),
        (["train", "vlm", "--vision", "nowhere"], "nowhere is not a finished model"),
        (["train", "vqvae", "--device", "toaster"], "no device 'toaster'"),
        (["train", "vqvae", "--train.device", "toaster"], "no device 'toaster'"),
        (
            ["train", "vqvae", "--train.dtype", "float8", "--steps", "1"],
            "expected one of auto, float32, bfloat16",
        ),
        (["train", "clip", "--data", "nowhere"], "no directory nowhere"),
        (["ask", "nowhere", "a.png", "what?"], "nowhere is not a finished model: it does not exist"),
        (["ask", "nowhere", "what?"], "at least one picture and a question"),
        (["draw", "nowhere", "an owl"], "nowhere is not a finished model"),
        (["draw", "nowhere", "an owl", "--n", "0"], "-n must be at least 1"),
        (
            ["draw", "nowhere", "an owl", "--candidates", "4"],
            "--candidates 4 are drawn for a CLIP to choose from",
        ),
        (["train", "vlm", "--dtype", "int8"], "int8 weights cannot be trained: choose float32 or bfloat16"),
        (["evaluate", "nowhere", "--task", "vqa"], "nowhere is not a finished model"),
        (["compare", "here", "there"], "here has no predictions yet"),
        (["evaluate", "nowhere", "--task", "vqq"], "invalid choice 'vqq' for argument '--task'"),
        (["evaluate"], "PATH a finished run"),
        (["quickstart", "--seed", "x"], "--seed"),
    ],
)
def test_bad_input_is_one_sentence(run, tmp_path: Path, words: list[str], message: str) -> None:
    assert message in one_sentence(run(*words))
    assert not any(tmp_path.iterdir())


def test_no_run_is_overwritten(run, smoke: Path) -> None:
    before = (smoke / "vqvae" / "model.safetensors").stat().st_mtime_ns
    one_sentence(run("train", "vqvae", "--smoke", "--out", smoke / "vqvae"))
    said = one_sentence(run("quickstart", "--smoke", "--out", smoke))
    assert "is not empty: continue it with --resume" in said
    assert (smoke / "vqvae" / "model.safetensors").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "There is no picture"),
        (b"", "is empty (0 bytes)"),
        (b"not a picture", "is not a picture"),
        (black(640)[:80], "is broken or cut off"),
        (black(8193), "is too large"),
    ],
    ids=["missing", "empty", "text", "cut off", "giant"],
)
def test_a_picture_that_is_none_is_one_sentence(
    run, smoke: Path, tmp_path: Path, content: bytes | None, message: str
) -> None:
    path = tmp_path / "owl.png"
    if content is not None:
        path.write_bytes(content)
    said = one_sentence(run("ask", smoke / "vlm-continuous", path, "what?"))
    assert message in said and str(path) in said


@pytest.mark.parametrize(
    ("mode", "side", "form", "message"),
    [
        ("1", 1, "PNG", "is 1 x 1 pixels, in which there is next to nothing to see"),
        ("I;16", 32, "PNG", "has 16 bits a colour, which are scaled to 8"),
        ("CMYK", 32, "JPEG", "is in CMYK, which is converted to RGB without its colour profile"),
    ],
)
def test_a_picture_that_is_odd_is_told_in_one_sentence_and_answered(
    run, smoke: Path, tmp_path: Path, mode: str, side: int, form: str, message: str
) -> None:
    path = tmp_path / "owl.png"
    Image.new(mode, (side, side)).save(path, form)
    ended = run("ask", smoke / "vlm-continuous", path, "what?", "--max-new-tokens", "4")
    assert ended.status == 0
    assert ended.err == f"bifocal: The picture {path} {message}.\n"


def test_of_many_odd_pictures_the_first_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with notes_in_a_sentence():
        for number in range(NOTES + 3):
            path = tmp_path / f"{number}.png"
            Image.new("L", (1, 1)).save(path)
            read_picture(path)
    *told, last = capsys.readouterr().err.splitlines()
    assert [f"{number}.png" in line for number, line in enumerate(told)] == [True] * NOTES
    assert last == "bifocal: further notes like these are left out"


def test_ask_answers(run, smoke: Path, tmp_path: Path) -> None:
    Image.fromarray(tiny.picture(0, 48)).save(tmp_path / "a.png")
    words = ["ask", smoke / "vlm-discrete", tmp_path / "a.png", "what?", "--max-new-tokens", "4"]
    plain, told = run(*words), run(*words, "--json")
    assert (plain.status, told.status) == (0, 0)
    about = json.loads(told.out)
    assert about.keys() == {"text", "boxes", "finish_reason", "logprobs"}
    assert plain.out.splitlines()[0] == about["text"]


def test_ask_is_for_a_vlm(run, smoke: Path) -> None:
    said = one_sentence(run("ask", smoke / "clip", "a.png", "what?"))
    assert "is a clip, and questions are for a VLM" in said


def test_draw_writes_a_picture(run, smoke: Path, tmp_path: Path) -> None:
    ended = run("draw", smoke / "vlm-discrete", "an owl", "-o", tmp_path / "owl.png", "--n", "2")
    assert ended.status == 0, ended.err
    with Image.open(tmp_path / "owl.png") as picture:
        assert picture.width > picture.height >= 64


def test_draw_keeps_what_a_clip_likes_best(run, smoke: Path, tmp_path: Path) -> None:
    words = ["--rerank", smoke / "clip", "--candidates", "3", "-o", tmp_path / "owl.png", "--n", "2"]
    ended = run("draw", smoke / "vlm-discrete", "an owl", *words)
    assert ended.status == 0, ended.err
    with Image.open(tmp_path / "owl.png") as picture:
        assert picture.width > picture.height  # two of the three, side by side


def test_drawing_into_a_folder_that_is_not_there_is_one_sentence(run, smoke: Path, tmp_path: Path) -> None:
    one_sentence(run("draw", smoke / "vlm-discrete", "an owl", "-o", tmp_path / "nowhere" / "owl.png"))


def test_a_continuous_vlm_does_not_draw(run, smoke: Path) -> None:
    said = one_sentence(run("draw", smoke / "vlm-continuous", "an owl"))
    assert "cannot draw; use a discrete VLM" in said


def test_evaluate_with_json_prints_rows_and_nothing_else(run, smoke: Path, tmp_path: Path) -> None:
    from bifocal.evaluation.results import Row

    data = tiny.folder(tmp_path / "own", pictures=4)
    words = ["evaluate", smoke / "vqvae", "--task", "reconstruction", "--data", data, "--json"]
    ended = run(*words)
    assert ended.status == 0, ended.err
    rows = [Row.from_json(row) for row in json.loads(ended.out)["results"]]
    assert {"psnr", "usage"} <= {row.metric for row in rows}


def test_evaluating_a_vqvae_leaves_a_page_about_it(run, smoke: Path, tmp_path: Path) -> None:
    shutil.copytree(smoke / "vqvae", tmp_path / "vqvae")
    data = tiny.folder(tmp_path / "own", pictures=4)
    ended = run("evaluate", tmp_path / "vqvae", "--task", "reconstruction", "--data", data)
    assert ended.status == 0, ended.err
    html = (tmp_path / "vqvae" / "reconstruction.html").read_text()
    assert "reconstruction.html" in ended.err
    assert html.count('<img src="data:image/png;base64,') == 4  # reconstructions, histogram, tokens, codebook
    for title in ("Reconstructions", "How often each code is used", "Token maps", "The codebook", "PSNR"):
        assert title in html
    with Image.open(tmp_path / "vqvae" / "figures" / "reconstructions.png") as sheet:
        assert sheet.size == (
            4 * (2 * 64 + 2) + 2,
            3 * (2 * 64 + 2) + 2,
        )  # four pictures, twice their size, in three rows


def test_a_prior_is_trained_and_counts_bits(run, smoke: Path, tmp_path: Path) -> None:
    from bifocal.evaluation.results import Row

    data, prior = tiny.folder(tmp_path / "own", pictures=6), tmp_path / "prior"
    words = ["train", "prior", "--smoke", "--vision", smoke / "vqvae", "--data", data, "--out", prior]
    ended = run(*words, "--steps", "2", "--language.width", "32")
    assert ended.status == 0, ended.err
    words = ["evaluate", smoke / "vqvae", "--task", "reconstruction", "--data", data, "--json"]
    ended = run(*words, "--prior", prior)
    assert ended.status == 0, ended.err
    rows = [Row.from_json(row) for row in json.loads(ended.out)["results"]]
    (row,) = [row for row in rows if row.metric == "bits_per_dim"]
    assert row.variant == "prior=prior" and row.n == 6 and row.low is not None


def test_the_frechet_distance_names_its_features(run, smoke: Path, tmp_path: Path) -> None:
    from bifocal.evaluation.results import Row

    data = tiny.folder(tmp_path / "own", pictures=6)
    words = ["evaluate", smoke / "vqvae", "--task", "reconstruction", "--data", data, "--json"]
    ended = run(*words, "--features", smoke / "clip")
    assert ended.status == 0, ended.err
    rows = [Row.from_json(row) for row in json.loads(ended.out)["results"]]
    (row,) = [row for row in rows if row.metric == "frechet"]
    assert row.variant == "features=clip" and row.value is not None and row.value > 0
    assert row.low is None and row.baseline is not None
    assert "features come from a CLIP" in one_sentence(run(*words, "--features", smoke / "vqvae"))


def test_compare_with_json_prints_json_and_nothing_else(run, smoke: Path) -> None:
    ended = run("compare", smoke / "vlm-continuous", smoke / "vlm-discrete", "--json")
    assert ended.status == 0, ended.err
    assert json.loads(ended.out)


def test_scenes_are_written_as_files_that_read_back(run, tmp_path: Path) -> None:
    from bifocal.data.folder import FolderDataset

    out = tmp_path / "scenes"
    assert run("data", "scenes", "--out", out, "--count", "3").status == 0
    dataset = FolderDataset(out, "vqa")
    assert len(dataset.samples) == 3
    assert dataset.picture(dataset.samples[0].pictures[0]).shape == (64, 64, 3)
    assert "is not empty" in one_sentence(run("data", "scenes", "--out", out))
