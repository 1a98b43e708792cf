"""The command line: a mistake is one line on stderr with exit code 2, and costs nothing that was there."""

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tiny_models import picture, starter_janus, starter_showo, starter_unigen
from tiny_unirl import starter_unirl
from triptych import cli
from triptych.arguments import flags_of
from triptych.evals.editing import CRITERIA
from triptych.evals.intervals import wilson
from triptych.models import load
from triptych.models.base import to_pictures
from triptych.recipes import shapes_world
from triptych.recipes.demo import DEMOS
from triptych.shapes.edits import EDITS
from triptych.trajectory import Denoising, NoiseKey, Prompt, Sampling, Unmasking


@dataclass(frozen=True)
class Ended:
    """What a command left behind."""

    code: int
    out: str
    err: str


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model, shared by all: never written to."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    starter_janus().save_pretrained(folder)
    return folder


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], model: Path
) -> Iterator[Callable[[str], Ended]]:
    """Run a command line in an empty folder with the tiny model at ./tiny; the world makes 32 tasks only."""
    monkeypatch.setattr(shapes_world, "train_tasks", partial(shapes_world.train_tasks, 32))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    Path("tiny").symlink_to(model)

    def command(line: str) -> Ended:
        capsys.readouterr()
        code = 0
        try:
            cli.main(shlex.split(line))
        except SystemExit as error:
            code = int(error.code or 0)
        said = capsys.readouterr()
        return Ended(code, said.out, said.err)

    yield command


TRAIN = "train demo --model tiny --steps 1 --prompts 2 --group 2 --evaluate-tasks 6"


# -- arguments ---------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("trian", "no command 'trian'; did you mean train?"),
        (
            "xyzzy",
            "no command 'xyzzy'; there are demo, train, eval, draw, edit, ask, quiz, serve-rewards,"
            " reproduce, report, doctor, recipes",
        ),
        ("train", "which recipe? `triptych recipes` lists them"),
        ("train dmo", "no recipe called 'dmo'; did you mean demo?"),
        ("doctor dmo", "no recipe called 'dmo'; did you mean demo?"),
        ("train demo --stpes 3", "no setting --stpes; did you mean --steps?"),
        ("train demo --optimizer.lrr 1", "no setting --optimizer.lrr; did you mean --optimizer.lr?"),
        ("train demo --optimzer.lr 1", "no setting --optimzer.lr; did you mean --optimizer.lr?"),
        ("train demo --lr 1", "no setting --lr; did you mean --optimizer.lr?"),
        ("train demo --guidance 2", "no setting --guidance; did you mean --rollout.draw.guidance?"),
        ("train demo --loss.kl_coeff=1", "no setting --loss.kl-coeff; did you mean --loss.kl-coef?"),
        ("train janus.lora --lora.rnk 4", "no setting --lora.rnk; did you mean --lora.rank?"),
        ("train demo --zzz 1", "no setting --zzz; `triptych train demo --help` lists them"),
        ("train demo --steps x", "--steps: expected a whole number, got 'x'"),
        ("train demo --steps 1.5", "--steps: expected a whole number, got '1.5'"),
        ("train demo --optimizer.lr fast", "--optimizer.lr: expected a number, got 'fast'"),
        ("train demo --steps", "--steps: expected a value after it"),
        ("train demo --optimizer.betas 0.9", "--optimizer.betas: expected 2 values after it"),
        ("train demo --combine both", "--combine: 'both' is none of 'sum', 'each'"),
        ("train demo 100", "not understood: 100"),
        ("train public.unigen15.align --data a", "--data: expected names and values in turn, got 'a'"),
        ("train unigen15.rl --kinds edit x", "--kinds: 'x' is none of 't2i', 'edit'"),
        (
            "train unigen15.rl",
            "no run at runs/unigen15.align: train unigen15.align first, or name another model",
        ),
        ("train demo --rewards geneval", "--rewards: expected names and numbers in turn, got 'geneval'"),
        (
            "train demo --rewards geneval a",
            "--rewards: expected names and numbers in turn, got 'geneval a'",
        ),
        (
            "demo --model shwo",
            "no starter called 'shwo'; there are janus, showo, unigen, unirl_zero, or a model's folder or hub"
            " name",
        ),
        ("doctor --model", "--model: expected a value after it"),
        ("train demo --steps 0", "steps must be at least 1, got 0"),
        ("train demo --prompts -2", "prompts must be at least 1, got -2"),
        ("train demo --group 1", "group must be at least 2: an advantage compares episodes of one task"),
        ("train demo --optimizer.lr 0", "lr must be positive, got 0.0"),
        ("train demo --rollout.batch 0", "the rollout batch must be at least 1, got 0"),
        ("train demo --rollout.draw.temperature -1", "temperature must be 0 (greedy) or positive, got -1.0"),
        ("train demo --loss.kl-coef -0.1", "kl_coef must not be negative, got -0.1"),
        (
            "train demo --resume --overwrite",
            "--resume goes on with the run that is there, --overwrite deletes it: choose one",
        ),
        ("eval", "not given: MODEL; see `triptych eval --help`"),
        ("draw tiny", "not given: PROMPT; see `triptych draw --help`"),
        ("edit tiny", "not given: IMAGE, INSTRUCTION; see `triptych edit --help`"),
        ("edit tiny p.png blue --out blue.gif", "--out blue.gif: drawings are saved as .png"),
        ("ask", "not given: MODEL, IMAGE, QUESTION; see `triptych ask --help`"),
        ("report", "not given: RUN; see `triptych report --help`"),
        ("recipes all", "not understood: all; `triptych recipes` takes nothing more"),
        ("eval tiny --tasks 0", "--tasks must be at least 1, got 0"),
        ("eval tiny --guidance -1", "guidance must be 0 or positive, got -1.0"),
        ("draw tiny square --unmask.steps 0", "unmask.steps must be at least 1, got 0"),
        ("draw tiny square --steps 8", "no setting --steps; did you mean --unmask.steps?"),
        ("draw tiny square --denoise.steps 1", "denoise.steps must be at least 2 with 'flow', got 1"),
        (
            "eval tiny --denoise.noise ddpm",
            "--denoise.noise: 'ddpm' is none of 'flow', 'dance', 'cps', 'ode'",
        ),
        ("eval tiny --unmask.order sure", "--unmask.order: 'sure' is none of 'random', 'confidence'"),
        ("eval tiny --source-guidance -1", "source_guidance must be 0 or positive, got -1.0"),
        ("draw tiny square --n 0", "--n must be at least 1, got 0"),
        ("draw tiny square --out square.gif", "--out square.gif: drawings are saved as .png"),
        ("draw tiny square --sed 3", "no setting --sed; did you mean --seed?"),
        ("ask tiny picture.png what --max-tokens 0", "--max-tokens must be at least 1, got 0"),
    ],
)
def test_a_wrong_argument_is_one_line(run: Callable[[str], Ended], line: str, expected: str) -> None:
    assert run(line) == Ended(2, "", f"triptych: {expected}\n")
    assert sorted(p.name for p in Path().iterdir()) == ["tiny"], "something was written"


def asked(line: str) -> Any:
    """The settings that arguments of `triptych train` ask for."""
    name, *arguments = shlex.split(line)
    return cli._asked(name, arguments, "train")[0].config


def test_weights_of_rewards_replace_the_recipe_s(run: Callable[[str], Ended]) -> None:
    config = asked("demo --rewards background 0.5 a.py:b -2 --loss.kl k2")
    assert config.rewards == {"background": 0.5, "a.py:b": -2.0}
    assert config.loss.kl == "k2" and config.held_out == ()
    config = asked("janus.lora --lora.rank 4 --no-gradient-checkpointing")
    assert config.lora.rank == 4 and config.lora.alpha == 64 and not config.gradient_checkpointing


def test_the_demo_of_a_model_has_that_model_s_settings(run: Callable[[str], Ended]) -> None:
    """By a starter's bare name, by any name of a model of its family; other flags still override them."""
    starter_showo().save_pretrained(Path("masked"))
    for name in DEMOS:
        assert asked(f"demo --model={name}") == DEMOS[name]
        assert DEMOS[name].model == f"starters/{name}"
    assert asked("demo") == DEMOS["janus"] and DEMOS["showo"].rollout != DEMOS["janus"].rollout
    assert asked("demo --model ./masked") == replace(DEMOS["showo"], model="./masked")
    assert asked("demo --model tiny --model masked") == replace(DEMOS["showo"], model="masked")
    config = asked("demo --model showo --rollout.draw.unmask.steps 6 --optimizer.lr 1")
    assert config.rollout.draw.unmask == replace(DEMOS["showo"].rollout.draw.unmask, steps=6)
    assert config.optimizer == replace(DEMOS["showo"].optimizer, lr=1.0)

    quick = "--steps 1 --prompts 2 --group 2 --evaluate-tasks 6"
    assert run(f"demo --model masked {quick}").code == 0
    about = json.loads(Path("runs/demo-showo/config.json").read_text())
    assert about["recipe"] == "demo-showo" and about["config"]["model"] == "masked"
    assert about["config"]["rollout"]["draw"]["unmask"]["steps"] == DEMOS["showo"].rollout.draw.unmask.steps
    assert Path("runs/demo-showo/report.html").exists() and not Path("runs/demo").exists()
    assert "ratio 1 holds" in run("doctor --model masked").out


# -- files -------------------------------------------------------------------------------------------
def _one_line(ended: Ended) -> str:
    assert ended.code == 2, ended
    lines = ended.err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("triptych: "), ended.err
    return lines[0].removeprefix("triptych: ")


def test_a_broken_line_of_tasks_is_named(run: Callable[[str], Ended]) -> None:
    lines = [{"prompt": "a"}, {"prompt": "b", "include": [{"class": "cat", "count": 0}]}, {"prompt": 3}]
    Path("tasks.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    found = _one_line(run(f"{TRAIN} --tasks tasks.jsonl"))
    assert found == (
        "tasks.jsonl, line 2: field 'include[0].count': expected a positive integer, found 0"
        " (and 1 more bad lines)"
    )
    assert _one_line(run(f"{TRAIN} --tasks none.jsonl")) == "none.jsonl: no such file"
    assert not Path("runs").exists()


@pytest.mark.parametrize("line", ["eval {}", "draw {} square", "ask {} p.png what", "train demo --model {}"])
def test_no_model_there(run: Callable[[str], Ended], line: str) -> None:
    Image.new("RGB", (8, 8)).save("p.png")
    Path("empty").mkdir()
    for name in ("nowhere", "empty"):
        assert _one_line(run(line.format(f"./{name}"))).startswith(f"no model at ./{name}: expected a model")
    found = _one_line(run(line.format("starters/jnus")))
    assert found.startswith("no starter called starters/jnus; there are ")
    assert not Path("runs").exists()


def test_a_folder_that_is_some_other_model(run: Callable[[str], Ended]) -> None:
    Path("other").mkdir()
    Path("other/config.json").write_text('{"model_type": "gpt2"}')
    opens = "other is a gpt2 model; this version opens janus, showo, unigen15, unirl_zero"
    assert _one_line(run("draw other square")) == opens


@pytest.mark.parametrize("file", ["model.safetensors", "codec.safetensors", "config.json", "tokenizer.json"])
def test_a_truncated_file_of_a_model(run: Callable[[str], Ended], model: Path, file: str) -> None:
    Path("cut").mkdir()
    for path in model.iterdir():
        content = path.read_bytes()
        (Path("cut") / path.name).write_bytes(content[: len(content) // 2] if path.name == file else content)
    assert "cut" in _one_line(run("draw cut square"))


@pytest.mark.parametrize("file", ["codec.safetensors", "latent_codec.safetensors"])
def test_a_truncated_codec_of_other_models(run: Callable[[str], Ended], file: str) -> None:
    (starter_showo() if file.startswith("codec") else starter_unirl()).save_pretrained(Path("cut"))
    (Path("cut") / file).write_bytes((Path("cut") / file).read_bytes()[:200])
    assert f"cut/{file} cannot be read" in _one_line(run("draw cut square"))


def test_pictures_that_cannot_be_read(run: Callable[[str], Ended]) -> None:
    assert _one_line(run("ask tiny gone.png what")) == (
        "cannot read gone.png as a picture: No such file or directory"
    )
    Path("text.png").write_text("no picture")
    assert _one_line(run("ask tiny text.png what")) == (
        "cannot read text.png as a picture: not a picture that can be read"
    )


def test_what_is_no_run(run: Callable[[str], Ended]) -> None:
    assert _one_line(run("report gone")).startswith("gone is not a folder")
    Path("empty").mkdir()
    assert _one_line(run("report empty")).startswith("empty is not a run")
    Path("file").write_text("")
    assert _one_line(run(f"{TRAIN} --run file")) == "file is a file: --run names a folder"


def test_rewards_that_are_not_there(run: Callable[[str], Ended]) -> None:
    Path("mine.py").write_text("def good(prompts, completions): return [1.0] * len(prompts)\n")
    Path("broken.py").write_text("import nothing_like_it\n")
    for rewards, expected in (
        ("clap 1", "no reward called 'clap'; there are geneval, geneval_official, background, preservation"),
        ("mine.py:bad 1", "reward 'mine.py:bad': mine.py has no function bad; it has good"),
        ("gone.py:good 1", "reward 'gone.py:good': no such file gone.py"),
        ("broken.py:good 1", "reward 'broken.py:good': broken.py failed to import: ModuleNotFoundError"),
    ):
        assert _one_line(run(f"{TRAIN} --rewards {rewards}")).startswith(expected)
    assert _one_line(run(f"{TRAIN} --held-out clap")).startswith("no reward called 'clap'")
    assert not Path("runs").exists()


def test_a_folder_that_refuses(run: Callable[[str], Ended]) -> None:
    Path("file").write_text("")
    assert _one_line(run("draw tiny square --out file/square.png")).startswith("cannot use file")


# -- a run that is there -----------------------------------------------------------------------------
def test_a_mistake_costs_no_run(run: Callable[[str], Ended]) -> None:
    assert run(f"{TRAIN} --run mine").code == 0
    kept = {p: p.read_bytes() for p in Path("mine").rglob("*") if p.is_file()}
    assert any(p.name == "MANIFEST.json" for p in kept)

    there = "mine already holds a run: add --resume to go on, --overwrite, or choose another --run"
    assert _one_line(run(f"{TRAIN} --run mine")) == there
    assert _one_line(run("demo --model tiny --run mine")) == there
    mistakes = ("--rewards clip 1", "--tasks gone.jsonl", "--model ./gone", "--stpes 3", "--steps 0")
    late = ("--optimizer.group-lr nobody 1e-4", "--prompts 4000", "--sinks trackio --steps 0")
    for mistake in mistakes + late:
        _one_line(run(f"{TRAIN} --run mine --overwrite {mistake}"))
    other = _one_line(run("train janus --run mine --resume --model tiny"))
    assert other == "mine holds a run of demo, not of janus: choose another --run"
    now = {p: p.read_bytes() for p in Path("mine").rglob("*") if p.is_file()}
    assert now == kept

    assert run(f"{TRAIN} --run mine --overwrite").code == 0
    assert Path("mine/config.json").read_bytes() != kept[Path("mine/config.json")]


def test_a_damaged_checkpoint_is_passed_by(run: Callable[[str], Ended]) -> None:
    assert run(f"{TRAIN} --run mine --checkpoint-every 1 --keep 2 --steps 2").code == 0
    weights = Path("mine/checkpoints/step_00000002/model/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-100])
    ended = run(f"{TRAIN} --run mine --steps 3 --resume")
    assert ended.code == 0 and "resuming after step 1" in ended.out
    assert re.fullmatch(r"warning: checkpoint \S+step_00000002 is damaged.*100.*|warning: .*\n", ended.err)

    for manifest in Path("mine/checkpoints").glob("*/MANIFEST.json"):
        manifest.unlink()
    assert _one_line(run("draw mine square")) == "mine is a run without a whole checkpoint"


def test_an_unknown_sink(run: Callable[[str], Ended]) -> None:
    found = _one_line(run(f"{TRAIN} --sinks tensorbord"))
    assert found == "--sinks: 'tensorbord' is none of 'tensorboard', 'trackio', 'wandb'"


# -- what is shown -----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "line",
    [
        "",
        "--help",
        "train --help",
        "train demo --help",
        "train janus.lora --help",
        "train starters.janus --help",
        "draw --help",
        "edit --help",
        "ask --help",
        "eval --help",
        "serve-rewards --help",
        "reproduce --help",
        "reproduce --list",
        "report --help",
        "doctor --help",
        "recipes",
        "doctor demo --model tiny",
        "eval tiny --tasks 6",
        TRAIN,
    ],
)
def test_everything_fits_eighty_columns(run: Callable[[str], Ended], line: str) -> None:
    ended = run(line)
    assert ended.code == 0 and ended.err == "", ended.err
    wide = [text for text in ended.out.splitlines() if len(text) > 80]
    assert not wide
    assert "``" not in ended.out and "\n\n\n" not in ended.out


def test_help_names_every_setting(run: Callable[[str], Ended]) -> None:
    from triptych.recipes import find

    shown = set(re.findall(r"--[a-z][\w.-]*", run("train janus.lora --help").out)) - {"--help"}
    recipe = find("janus.lora")
    flags = [*flags_of(cli.Where), *flags_of(type(recipe.config), recipe.config)]
    assert shown == {f"--{flag}" for flag in flags}
    assert {"--rewards", "--lora.rank", "--rollout.draw.guidance", "--resume"} <= shown


def test_recipes_lists_what_can_be_trained(run: Callable[[str], Ended]) -> None:
    from triptych.recipes import SUMMARIES, find, recipes

    listed = dict(line.split(maxsplit=1) for line in run("recipes").out.splitlines())
    assert listed == SUMMARIES and recipes().keys() == SUMMARIES.keys()
    for name in SUMMARIES:
        assert find(name).name == name


def test_listing_and_mistakes_do_not_import_torch() -> None:
    for line in ("", "recipes", "train --help", "train dmo", "draw --help", "draw", "edit x"):
        program = (
            "import sys\nfrom triptych import cli\n"
            f"try:\n cli.main({shlex.split(line)!r})\nexcept SystemExit: pass\n"
            "sys.exit('torch' in sys.modules)"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
        assert done.returncode == 0, f"triptych {line} imports torch"


def test_opening_a_model_says_nothing(model: Path, tmp_path: Path) -> None:
    """In a process of its own: the tests' own set-up silences transformers."""
    command = [sys.executable, "-m", "triptych.cli", "draw", str(model), "draw", "--out", "drawing.png"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "4 drawings of 'draw': drawing.png\n", "")


def test_draw_samples_as_it_is_told(run: Callable[[str], Ended], tmp_path: Path) -> None:
    model = starter_showo()
    model.save_pretrained(tmp_path / "masked")
    model = load("masked")

    def expected(**settings: Any) -> np.ndarray[Any, Any]:
        key = NoiseKey(0, 0, "a square", 0, "image")
        drawn = model.generate_image([Prompt.of("a square")], Sampling(**settings), [key])
        return to_pictures(model.decode(drawn))[0].numpy()

    asked = "--unmask.steps 3 --unmask.order confidence --unmask.order-temperature 0.5"
    unmask = Unmasking(steps=3, order="confidence", order_temperature=0.5)
    for flags, settings in (("", {}), (asked, {"unmask": unmask}), ("--guidance 4", {"guidance": 4.0})):
        assert run(f"draw masked 'a square' --n 1 --pixels 8 {flags}").code == 0
        assert np.array_equal(np.array(Image.open("drawing.png")), expected(**settings)), flags
    assert not np.array_equal(expected(), expected(unmask=unmask))
    refused = _one_line(run("draw masked 'a square' --source-guidance 2"))
    assert refused == "source_guidance is for edits, and showo cannot edit: leave it unset"


def test_a_model_of_latents_draws_edits_answers_and_is_checked(run: Callable[[str], Ended]) -> None:
    from tiny_unirl import starter_unirl  # diffusers is slow to import

    starter_unirl().save_pretrained(Path("latent"))
    model, prompt = load("latent"), "a square"
    about = Sampling(denoise=Denoising(steps=3, noise="cps", level=0.5, shift=2.0), source_guidance=1.5)
    flags = (
        "--denoise.steps 3 --denoise.noise cps --denoise.level 0.5 --denoise.shift 2 --source-guidance 1.5"
    )
    Image.fromarray(picture(1).numpy()).save("source.png")
    for command, asked in (
        ("draw latent", Prompt.of(prompt)),
        ("edit latent source.png", Prompt.of(picture(1), prompt)),
    ):
        drawn = model.generate_image([asked], about, [NoiseKey(0, 0, prompt, 0, "image")])
        said = run(f"{command} '{prompt}' --n 1 --pixels 8 {flags}")
        assert said == Ended(0, "1 drawing of 'a square': drawing.png\n", "")
        assert np.array_equal(
            np.array(Image.open("drawing.png")), to_pictures(model.decode(drawn))[0].numpy()
        )
    assert len(run("ask latent source.png 'what is this ?' --max-tokens 3").out.split()) <= 3
    assert "ratio 1 holds" in run("doctor --model latent").out
    refused = _one_line(run("draw latent square --temperature 0.5"))
    assert refused == "unmask and temperature are for tokens, and unirl_zero draws latents: leave both unset"


def test_edits_are_for_models_that_can(run: Callable[[str], Ended]) -> None:
    starter_unigen().save_pretrained(Path("masked"))
    Image.fromarray(picture(1).numpy()).save("source.png")
    key = NoiseKey(0, 0, "red", 0, "image")
    model = load("masked")
    drawn = model.generate_image([Prompt.of(picture(1), "red")], Sampling(), [key])
    assert run("edit masked source.png red --n 1 --pixels 8").code == 0
    assert np.array_equal(np.array(Image.open("drawing.png")), to_pictures(model.decode(drawn))[0].numpy())
    assert _one_line(run("eval tiny --suite shapes-edit")) == "janus cannot edit; it can draw, read, relax"
    ended = run("eval masked --suite shapes-edit --tasks 10 --save out")
    assert ended.code == 0 and max(map(len, ended.out.splitlines())) <= 80
    assert "\N{HORIZONTAL ELLIPSIS}" not in ended.out, "a column is cut"
    rows = [json.loads(line) for line in Path("out/samples/eval/samples.jsonl").read_text().splitlines()]
    told = {
        words[0]: words[1:]
        for line in ended.out.splitlines()
        if len(words := line.split()) == 9 and words[1].isdigit()
    }
    assert list(told) == [*EDITS, "micro", "macro"] and told["add"][0] == "2"
    means = [sum(row[name] for row in rows) / 10 for name in CRITERIA]
    assert told["micro"][:5] == ["10", *(f"{mean:.2f}" for mean in means), f"{sum(means) / 3:.2f}"]
    assert f"rule: {sum(row['correct'] for row in rows) / 10:.1%}" in ended.out
    assert _one_line(run("edit tiny source.png red")) == "janus cannot edit; it can draw, read, relax"
    assert _one_line(run("edit masked gone.png red")).startswith("cannot read gone.png as a picture")


def test_the_command_line_s_defaults_are_those_of_sampling() -> None:
    for ours, theirs in ((cli.Unmask(), Unmasking()), (cli.Denoise(), Denoising())):
        assert asdict(ours).items() <= asdict(theirs).items()


def test_draw_and_ask_and_eval_do_what_they_say(run: Callable[[str], Ended]) -> None:
    said = run("draw tiny 'a red circle' --n 3 --pixels 16 --out deep/er.png")
    assert said == Ended(0, "3 drawings of 'a red circle': deep/er.png\n", "")
    refused = _one_line(run("ask tiny deep/er.png 'what is this ?'"))
    assert refused == "deep/er.png is 3 drawings side by side: make one alone, with --n 1"
    strip = np.array(Image.open("deep/er.png"))
    assert strip.shape == (16, 3 * 16 + 2 * cli.GAP, 3)
    first, gap = strip[:, :16], strip[:, 16 : 16 + cli.GAP]
    assert (gap == cli.GREY).all() and np.array_equal(gap, strip[:, 32 + cli.GAP : 32 + 2 * cli.GAP])
    assert np.array_equal(first, first[::2, ::2].repeat(2, 0).repeat(2, 1)), "enlarged without smoothing"
    run("draw tiny 'a red circle' --n 1 --pixels 16 --out one.png")
    assert np.array_equal(np.array(Image.open("one.png")), first), "a drawing depends on how many there are"
    run("draw tiny 'a red circle' --n 1 --pixels 16 --seed 1 --out two.png")
    assert not np.array_equal(np.array(Image.open("two.png")), first)

    once, again = (run("ask tiny one.png 'what is this ?' --max-tokens 3") for _ in range(2))
    assert once == again and once.code == 0 and len(once.out.split()) <= 3

    ended = run("eval tiny --tasks 6 --save out")
    rows = [json.loads(line) for line in Path("out/samples/eval/samples.jsonl").read_text().splitlines()]
    right = sum(row["correct"] for row in rows)
    assert len(rows) == 6 and re.search(rf"all +6 +{right / 6:.1%}", ended.out)
    found, low, high = wilson(right, 6)
    own = rf"judge +6 +{found:.1%} +{low:.1%} to {high:.1%}"
    assert re.search(own, ended.out), "its quiz, with intervals"
    assert len(list(Path("out/samples/eval").glob("*.png"))) == 6
