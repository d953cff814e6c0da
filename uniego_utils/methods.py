"""The register: every student of the suite, declared once.

Figures, notebooks, claims and the report read names, colours and comparisons here; `students.train` trains
from it. A further student is one entry (and, where its loss is new, one objective); from outside the package,
give `students.train` a dictionary of `Method`s.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

from torch import Tensor

from uniego_utils import candidates, rivals
from uniego_utils.candidates import Candidates
from uniego_utils.cards import MethodCard
from uniego_utils.objectives import Classification, ProxyDistillation, TeacherDistillation

START = "start"  # the common start of all students of a seed
EGO = "ego"
NAIVE = "naive"
CEILING = "ceiling"
TRUE, GUESSED = "true", "guessed"  # labels of the pairs
EACH = "each"  # of notebook 02: every student of it
OTHER_COLOUR = "#999999"
GREY, BLUE, PALE, BLACK = "#666666", "#0077BB", "#F4B183", "#222222"


@dataclass(frozen=True)
class Method:
    """A student: where it starts, what it minimises, whom it learns from, and how it is shown."""

    label: str  # in tables and figures
    description: str  # in words, for lists
    notebook: str  # that trains it, hence where its run folder lies
    start: str = "merged"  # another student's key; "" for random weights
    objective: type[Classification] | None = Classification  # None: made from weights, not trained (merges)
    weights: Callable[[Candidates], Tensor] | None = None  # a rule of `candidates`, for objectives on proxies
    sources: tuple[str, ...] = ()  # teachers or proxies to learn from; empty: all
    settings: str = "spd"  # the preset's training settings: start, proxy or spd
    times: int = 1  # as many epochs as the settings say
    pair_labels: str = (
        ""  # TRUE: is given the labels of the pairs, which nobody else reads; GUESSED: a teacher's
    )
    pairs_only: bool = False  # has a meaning only where there are pairs without labels
    changes: Mapping[str, float] = field(default_factory=dict)  # of the card's method
    controls: tuple[str, ...] = ()  # students without which a comparison means little
    colour: str = OTHER_COLOUR

    @property
    def on_pairs(self) -> bool:
        """Whether it learns on pairs too, where an experiment has them: cross-entropy alone needs labels."""
        return bool(self.pair_labels) or self.objective is not Classification

    def changed(self, card: MethodCard) -> MethodCard:
        """The card's numbers, with this student's changes."""
        return replace(card, **self.changes)


_level_one = partial(Method, notebook="02_proxy", start=START, settings="proxy")
_merge = partial(Method, notebook="03_merging", start="", objective=None)
_level_two = partial(Method, notebook="04_spd")
_spd = partial(Method, objective=ProxyDistillation, weights=candidates.selected)
_ablation = partial(_spd, notebook="12_ablation", controls=("uniego",))
_trust = partial(
    Method, notebook="13_reliability", objective=ProxyDistillation, controls=("uniego", "all_proxies")
)
_direct = partial(
    Method, notebook="08_gradient_conflict", start=START, objective=TeacherDistillation, controls=("direct",)
)
EQUAL_COMPUTE = ("ego_longer", "naive_longer", "merged_ce")

METHODS: dict[str, Method] = {
    # Level I; a proxy per teacher comes from the card, see `proxy_of`
    START: Method("Common start", "labels alone, from random weights", "02_proxy", "", settings="start"),
    EGO: _level_one("Ego baseline", "labels alone", colour=GREY),
    NAIVE: _level_one(
        "Naive multi-teacher",
        "all teachers at once",
        objective=TeacherDistillation,
        controls=(EGO,),
        colour=BLUE,
    ),
    CEILING: _level_one(
        "All labels (ceiling)",
        "labels alone, those of the pairs too",
        pair_labels=TRUE,
        pairs_only=True,
        controls=(EGO,),
        colour="#AAAAAA",
    ),
    "guessed": _level_one(
        "Ego baseline, a teacher's guesses",
        "labels alone, those of the pairs guessed by the teacher with the best linear probe",
        pair_labels=GUESSED,
        pairs_only=True,
        controls=(EGO,),
        colour="#AA4499",
    ),
    # Merges of the proxies (Tables 7 and 10); soup, task arithmetic and TIES are not in the paper
    "merged": _merge("Merged proxies", "one learned coefficient a proxy", colour=PALE),
    "layer": _merge("Merged per layer", "one learned coefficient a proxy and layer"),
    "parameter": _merge("Merged per parameter", "one learned coefficient a proxy and tensor"),
    "average": _merge("Average of proxies", "equal coefficients", colour=PALE),
    "best": _merge("Best proxy (by validation)", "the proxy of the highest validation accuracy", colour=PALE),
    "soup": _merge("Greedy soup", "the average of those that do not harm validation accuracy"),
    "arithmetic": _merge("Task arithmetic", "from the common start along the sum of task vectors"),
    "ties": _merge("TIES", "from the common start along trimmed task vectors that agree in sign"),
    # Level II, with controls for as long
    "uniego": _spd(
        "UNIEGO",
        "merged start, selective proxy distillation",
        "04_spd",
        controls=EQUAL_COMPUTE,
        colour="#EE6611",
    ),
    "ego_longer": _level_two(
        "Ego baseline, trained on", "the ego baseline, for as long", start=EGO, colour=GREY
    ),
    "naive_longer": _level_two(
        "Naive multi-teacher, trained on",
        "naive multi-teacher distillation, for as long",
        start=NAIVE,
        objective=TeacherDistillation,
        colour=BLUE,
    ),
    "merged_ce": _level_two(
        "Merged, then labels alone", "merged start, labels alone for as long", colour=PALE
    ),
    "self_trained": _level_two(
        "Ego baseline, self-training",
        "the ego baseline teaches itself on the pairs",
        start=EGO,
        objective=ProxyDistillation,
        weights=candidates.everyone,
        sources=(EGO,),
        pairs_only=True,
        colour="#44AA99",
    ),
    # Tables 6, 7 and 8
    "start_all": _ablation(
        "No merge, all proxies",
        "no merge: the common start, all proxies",
        start=START,
        weights=candidates.everyone,
    ),
    "start_spd": _ablation("No merge, SPD", "no merge: the common start, selected proxies", start=START),
    "after_best": _ablation(
        "Best proxy, then SPD", "SPD from the proxy that is best on validation clips", start="best"
    ),
    "after_average": _ablation("Average, then SPD", "SPD from the plain average", start="average"),
    "after_layer": _ablation("Merged per layer, then SPD", "SPD from the merge per layer", start="layer"),
    "after_parameter": _ablation(
        "Merged per parameter, then SPD", "SPD from the merge per parameter", start="parameter"
    ),
    "after_soup": _ablation("Greedy soup, then SPD", "SPD from the greedy soup", start="soup"),
    "after_arithmetic": _ablation(
        "Task arithmetic, then SPD", "SPD from task arithmetic", start="arithmetic"
    ),
    "after_ties": _ablation("TIES, then SPD", "SPD from TIES", start="ties"),
    "all_proxies": _ablation(
        "All proxies",
        "merged start, all proxies, right or wrong",
        weights=candidates.everyone,
        colour=BLACK,
    ),
    "ego_exo": _ablation(
        "Top-1 (ego) + Top-1 (exo)",
        "merged start, the best ego and the best exo proxy of each clip",
        weights=candidates.best_of_each_viewpoint,
    ),
    "top2": _ablation("Top-2", "merged start, two proxies a clip", weights=partial(candidates.selected, k=2)),
    "top3": _ablation(
        "Top-3", "merged start, three proxies a clip", weights=partial(candidates.selected, k=3)
    ),
    "equal_votes": _ablation(
        "SPD, equal votes",
        "on pairs a committee in which every proxy has the same vote",
        weights=candidates.selected_with_equal_votes,
        pairs_only=True,
    ),
    "confident": _ablation(
        "SPD, most confident",
        "on pairs the surest proxy, whatever it says",
        weights=candidates.most_confident,
        pairs_only=True,
    ),
    "by_truth": _ablation(
        "SPD by true labels (ceiling)",
        "selected by the labels of the pairs, which nobody else reads",
        weights=candidates.selected_by_truth,
        pairs_only=True,
        colour="#AAAAAA",
    ),
    "features_only": _ablation(
        "SPD, features only", "UNIEGO without the proxies' logits", changes={"beta_logit": 0.0}
    ),
    "more_features": _ablation(
        "SPD, features four times", "UNIEGO with beta_feat times four", changes={"beta_feat": 20.0}
    ),
    "logits_only": _ablation(
        "SPD, logits only", "UNIEGO without the proxies' features", changes={"beta_feat": 0.0}
    ),
    "warm": _ablation(
        "SPD at temperature 4", "UNIEGO with softer logits: temperature 4", changes={"tau": 4.0}
    ),
    # Whom to trust
    "random": _trust(
        "One proxy by chance", "one proxy a clip, by chance", weights=candidates.by_chance, colour="#BBBBBB"
    ),
    "heldout": _trust(
        "Selected by held-out loss",
        "selected as in the paper, by the loss of proxies that have not seen the clip",
        weights=candidates.selected_by_held_out_loss,
        colour="#009988",
    ),
    "gate": _trust(
        "Learned selection (gate)",
        "weighted by a gate that has learned to foresee that loss",
        weights=candidates.learned,
        colour="#CC3377",
    ),
    "ca_mkd": _trust(
        "Weighted by confidence (CA-MKD)",
        "weighted by confidence in training (CA-MKD)",
        weights=rivals.weighted_by_confidence,
    ),
    "unic": _trust(
        "All proxies, dropped by chance (UNIC)",
        "all proxies, dropped by chance (UNIC)",
        objective=rivals.DroppedProxies,
        weights=candidates.everyone,
    ),
    # Direct distillation, and with conflicting gradients combined otherwise (notebook 08)
    "direct": _direct(
        "Direct multi-teacher", "the common start, all teachers at once", controls=(), colour=BLUE
    ),
    "pcgrad": _direct("Direct, PCGrad", "direct, gradients combined by PCGrad", colour="#33BBEE"),
    "cagrad": _direct("Direct, CAGrad", "direct, gradients combined by CAGrad", colour="#EE3377"),
    "upgrad": _direct("Direct, UPGrad", "direct, gradients combined by UPGrad", colour="#009988"),
}
MERGES = tuple(key for key, method in METHODS.items() if method.objective is None)


def proxy_of(teacher: str, label: str) -> Method:
    """The proxy of one teacher (equation 1)."""
    return _level_one(
        f"Proxy: {label}", f"learns from {label}", objective=TeacherDistillation, sources=(teacher,)
    )


def of_notebook(notebook: str, methods: Mapping[str, Method] = METHODS) -> dict[str, Method]:
    """Those of `methods` that a notebook trains, in order."""
    return {key: method for key, method in methods.items() if method.notebook == notebook}


def choose(keys: Iterable[str], among: Mapping[str, object]) -> dict:
    """The entries of `among` called `keys`; an unknown one is an error that lists the valid ones."""
    keys = list(keys)
    if unknown := [key for key in keys if key not in among]:
        raise ValueError(f"unknown method {', '.join(map(str, unknown))}; choose of {', '.join(among)}")
    return {key: among[key] for key in keys}


def missing_controls(methods: Mapping[str, Method]) -> list[str]:
    """The controls of these students that are not among them."""
    needed = dict.fromkeys(control for method in methods.values() for control in method.controls)
    return [key for key in needed if key not in methods]
