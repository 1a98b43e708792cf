"""The claims of UniRL-Zero (Z), UniGen-1.5 (C) and UniRL (U), on the starters: data, and nothing else.

Margins were fixed before anything was run, but where a claim's limits say that something was asked later.
Recipes are looked up by name when a claim is run.
"""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from triptych.claims import measures as m
from triptych.claims.experiment import Arm, Claim
from triptych.claims.verdicts import Comparison
from triptych.errors import UserError
from triptych.train.optimizer import OptimizerConfig

RATES = (1e-4, 3e-4, 1e-3)
BRIEF = {"evaluate_tasks": 96}
"""A run's own evaluations only tell what no reward sees: what a claim is about is measured apart, on more."""
TITLES = ("Show-o", "Janus")
BOTH = ("generation", "understanding")
SINGLE = ("RL t2i", "RL edit")
VERDICTS = ("verdict_on_right", "verdict_on_wrong")
HALVES = ("right_but_misread", "read_but_misdrawn")


def supervised(starter: str, rate: float) -> Arm:
    """Further supervised training of a starter for as long as "RL" takes: fresh warm-up, linear decay."""
    optimizer = OptimizerConfig(kind="muon", lr=rate, muon_lr=20 * rate, warmup=20, decay=0.5)
    settings = dict(optimizer=optimizer, read_first=0, evaluate_every=0, evaluate_tasks=6)
    recipe = "unigen15.sft" if starter == "unigen" else f"starters.{starter}"
    return Arm(f"supervised {rate:g}", recipe, f"starters/{starter}", settings, time_of="RL")


def _zero(recipe: str, name: str = "RL", trained: bool = True, **settings: Any) -> Arm:
    settings = BRIEF | ({} if recipe == "t2i" else {"steps": 40}) | settings
    if recipe in ("t2i", "cycle", "vague"):  # nothing is written: the language expert stays as it is
        settings["train"] = ("dm", "connector")
    return Arm(name, f"unirl_zero.{recipe}", "starters/unirl_zero", settings, trained)


def _gen(name: str, *kinds: str, start: str = "starters/unigen") -> Arm:
    settings = BRIEF | {"steps": 30, "kinds": kinds or ("t2i", "edit")}
    return Arm(name, "unigen15.rl", start, settings, name != "starter")


def _above(left: str, right: str, *measures: str | tuple[str, ...]) -> list[Comparison]:
    return [Comparison(left, right, measure) for measure in measures]


def _unirl(
    name: str, text: str, titles: Sequence[str], *pairs: tuple[str, str, Sequence[str]], limits: str = ""
) -> Claim:
    """Pairs of starter, SFT and GRPO in some columns, on each of the starters."""
    arms, comparisons = [], []
    for title in titles:
        family = title.lower().replace("-", "")
        for way, recipe in (("starter", "grpo"), ("SFT", "sft"), ("GRPO", "grpo")):
            trained, start = way != "starter", f"starters/{family}"
            arms.append(Arm(f"{title} {way}", f"unirl.{family}.{recipe}", start, BRIEF, trained))
        for left, right, columns in pairs:
            comparisons += _above(f"{title} {left}", f"{title} {right}", *columns)
    return Claim(name, text, arms, [m.QUIZ, m.UNDERSTANDING], comparisons, limits)


MORE = [supervised("unirl_zero", rate) for rate in RATES]
ALIGNED = Arm("aligned", "unigen15.align", "starters/unigen", BRIEF)
UNCYCLED = _zero("cycle", "RL without", rewards={"geneval": 4.0})
ALL = (
    Claim(
        "Z1",
        "Text-to-image RL raises the GenEval-style score of held-out prompts, and by more than the same"
        " minutes of further supervised training do, at the best of three learning rates.",
        [_zero("t2i", "starter", False), _zero("t2i"), *MORE],
        [m.GENERATION, m.ASIDE],
        [Comparison("RL", right, "generation") for right in ("starter", tuple(arm.name for arm in MORE))],
    ),
    Claim(
        "Z2",
        "On vague prompts thinking before drawing, after RL, beats drawing at once after as many steps of RL"
        " from the same checkpoint, and thinking before drawing without RL.",
        [_zero("cot", "starter", False), _zero("cot", "CoT RL"), _zero("vague", "direct RL")],
        [m.VAGUE, m.ASIDE],
        [Comparison("CoT RL", "direct RL", "thinking", "direct"), *_above("CoT RL", "starter", "thinking")],
        "Budgets are steps: one with a thought takes longer, see the minutes.",
    ),
    Claim(
        "Z3",
        "Cycle Edit RL raises how well edits follow the instruction and how well they keep the rest, over the"
        " starter and over the same RL without the cycle term.",
        [_zero("cycle", "starter", False), _zero("cycle", "cycle RL"), UNCYCLED],
        [m.EDITING, m.ASIDE],
        [c for right in ("starter", "RL without") for c in _above("cycle RL", right, "edit", "preservation")],
    ),
    Claim(
        "Z4",
        "Reflection RL raises the accuracy of verdicts, balanced over right and wrong drawings, and the share"
        " of wrong drawings that the second turn repairs; right ones break at most two points more often. It"
        " repairs more than after another drawing's verdict, and than drawing the prompt again.",
        [_zero("reflection", "starter", False), _zero("reflection")],
        [m.REFLECTION, m.CONTROLS, m.ASIDE],
        [
            *_above("RL", "starter", VERDICTS, "repaired"),
            Comparison("RL", "starter", "kept", margin=-0.02),
            *(Comparison("RL", "RL", "repaired", f"repaired_by_{turn}") for turn in ("another", "plain")),
        ],
        "Each arm judges drawings of its own, whose faults need not be alike. The last two comparisons were"
        " added when the runs had been made.",
    ),
    Claim(
        "Z5",
        "RL on text reasoning raises the accuracy of answers to held-out word problems, of a step more than"
        " those that the starter was shown the solutions of.",
        [_zero("text", "starter", False), _zero("text")],
        [m.PROBLEMS, m.ASIDE],
        _above("RL", "starter", "answer"),
    ),
    Claim(
        "Z6",
        "RL on multimodal reasoning raises the accuracy of answers, after a thought, to held-out questions"
        " about pictures.",
        [_zero("multimodal", "starter", False), _zero("multimodal")],
        [m.QUESTIONS, m.ASIDE],
        _above("RL", "starter", "answer"),
    ),
    Claim(
        "C1",
        "Unified RL raises the text-to-image score and the edit score at once.",
        [_gen("starter"), _gen("RL")],
        [m.GENERATION, m.EDITING],
        _above("RL", "starter", "generation", "edit_overall"),
    ),
    Claim(
        "C2",
        "RL gains more on edits after Edit Instruction Alignment than without it.",
        [_gen("starter", "edit"), _gen("RL", "edit"), ALIGNED, _gen("aligned RL", "edit", start="aligned")],
        [m.EDITING],
        [Comparison("aligned RL", "aligned", "edit_overall", beyond=("RL", "starter"))],
        f"Alignment takes steps of its own. Hard instructions are those of {m.HARD} words or more.",
    ),
    Claim(
        "C3",
        "RL on both tasks is within two points of the better single-task run, on both.",
        [_gen("starter"), _gen("RL both"), *(_gen(f"RL {kind}", kind) for kind in ("t2i", "edit"))],
        [m.GENERATION, m.EDITING],
        [
            Comparison("RL both", SINGLE, column, margin=0.02, within=True)
            for column in ("generation", "edit_overall")
        ],
    ),
    Claim(
        "C4",
        "Unified RL lowers the accuracy of answers about rendered scenes by no more than a point.",
        [_gen("starter"), _gen("RL")],
        [m.UNDERSTANDING],
        [Comparison("RL", "starter", "understanding", margin=-0.01)],
    ),
    *(
        _unirl(
            name,
            f"On the {title} starter UniRL's SFT, and its GRPO, raise the score of held-out drawings and the"
            " accuracy of answers about held-out rendered scenes.",
            [title],
            ("SFT", "starter", BOTH),
            ("GRPO", "starter", BOTH),
        )
        for name, title in zip(("U1", "U2"), TITLES, strict=True)
    ),
    _unirl(
        "U3",
        "UniRL's SFT, and its GRPO, lower both halves of the imbalance of drawing and reading.",
        TITLES,
        ("starter", "SFT", HALVES),
        ("starter", "GRPO", HALVES),
        limits="Differences are the starter's less the trained one's: above 0 the imbalance fell.",
    ),
    _unirl(
        "U4",
        "After as many steps GRPO has gained more than SFT in drawing and reading, and is less imbalanced.",
        TITLES,
        ("GRPO", "SFT", BOTH),
        ("SFT", "GRPO", HALVES),
        limits="The imbalance is SFT's less GRPO's. Budgets are steps, see the minutes.",
    ),
    Claim(
        "U5",
        "On the Show-o starter SFT gains more in drawing where the answer's gradient reaches the drawing than"
        " where it does not.",
        [
            Arm("starter", "unirl.showo.grpo", "starters/showo", BRIEF, trained=False),
            *(
                Arm(f"{regime} SFT", "unirl.showo.sft", "starters/showo", BRIEF | {"regime": regime})
                for regime in ("end_to_end", "separate")
            ),
        ],
        [m.QUIZ, m.UNDERSTANDING],
        _above("end_to_end SFT", "separate SFT", "generation"),
        "Asked when U1 had been run.",
    ),
)
CLAIMS: Mapping[str, Claim] = {claim.name: claim for claim in ALL}


def find_claim(name: str) -> Claim:
    """The claim of that name, in whichever case; UserError with the nearest one if there is none."""
    if name.upper() not in CLAIMS:
        alike = [known for known in CLAIMS if known[0] == name[:1].upper()]
        near = get_close_matches(name.upper(), alike, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(CLAIMS)}, and all"
        raise UserError(f"no claim called {name!r}; {hint}")
    return CLAIMS[name.upper()]
