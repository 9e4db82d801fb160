"""What the numbers of a study say, in sentences: computed, so that what doesn't hold in the numbers isn't said."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean

from pipeline.pictures.chart import name_of
from pipeline.studies.analysis import (
    Correlation,
    Crossing,
    Verdict,
    correlation,
    images_saved,
    images_to_reach,
)
from pipeline.studies.models import Model, best, clusterings, models_of, verdict_on_best, verdicts
from pipeline.studies.results import Result, Results

PREDICTORS = {
    "nmi": "NMI (%)",
    "accuracy": "accuracy (%)",
    "ari": "ARI (%)",
    "ami": "AMI (%)",
    "utilization_ratio": "utilization ratio",
}
SPOKEN = {name: text.removesuffix(" (%)") for name, text in PREDICTORS.items()} | {"C": "C"}
WORDS: dict[Verdict, str] = {
    "lower": "better than",
    "higher": "worse than",
    "undecided": "not told apart from",
    "untested": "not tested against",
}
SHORT_WORDS: dict[Verdict, str] = {
    "lower": "better",
    "higher": "worse",
    "undecided": "not told apart",
    "untested": "not tested",
}
CLAIMED_FEWER = 3  # times fewer images (arXiv 2403.00570: 3 to 5)


def enumerated(texts: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join(part for part in (", ".join(texts[:-1]), *texts[-1:]) if part)


def how_compared(results: Results, tried: Sequence[Model], what: str) -> str:
    """Which test stands behind better and worse, where `tried` are all that a rival is compared with."""
    seeds = len({run.seed for run in results.runs})
    test = (
        "Welch's t-test between the means of the trainings"
        if seeds > 1
        else "a t-test in blocks, as set by set all models are sampled from the same seeds"
    )
    several = f", with Holm's correction over the {len(tried)} {what}" if len(tried) > 1 else ""
    return f"Better, worse or not told apart: {test}, at 5 %{several}."


def spoken_verdicts(found: Sequence[tuple[Model, Verdict]]) -> list[str]:
    """`It is better than a (1.2) and b (1.3).` and so on, a sentence for each verdict."""
    sentences = []
    for verdict, words in WORDS.items():
        rivals = [f"{rival} ({rival.spread})" for rival, judged in found if judged == verdict]
        why = ", as a side has a single value" if verdict == "untested" else ""
        sentences += [f"It is {words} {enumerated(rivals)}{why}."] if rivals else []
    return sentences


def best_against_controls(results: Results) -> str:
    """The best clustering, and whether it beats each control."""
    own, models = models_of(clusterings(results)), models_of(results.runs)
    if not own:
        return "No clustering was measured."
    winner = best(own)
    controls = [model for model in models if model.method in ("none", "labels")]
    random = [model for model in models if model.method == "random"]
    controls += [best(random)] if random else []
    found = [(control, verdict_on_best(winner, control, own)) for control in controls]
    first = f"The best clustering is {winner}: {results.metric} {winner.spread}."
    return " ".join([first, *spoken_verdicts(found)])


def temi_against_kmeans(results: Results) -> str:
    """Whether TEMI's clusters are better than as many of k-means; empty where there are none to compare."""
    models = models_of(clusterings(results))
    pairs = [
        (ours, theirs)
        for ours in models
        for theirs in models
        if (ours.method, theirs.method) == ("temi", "kmeans")
        and (ours.num_clusters, ours.runs[0].values) == (theirs.num_clusters, theirs.runs[0].values)
    ]
    judged = list(zip(pairs, verdicts(pairs), strict=True))
    said = []
    for verdict, words in WORDS.items():
        where = [str(ours.num_clusters) for (ours, _), found in judged if found == verdict]
        said += [f"{words} k-means at C = {enumerated(where)}"] if where else []
    return f"With as many clusters, TEMI is {enumerated(said)}." if said else ""


def temi_against_others(results: Results) -> str:
    """TEMI's clusters against each other condition: the same number of groups, where that was chosen."""
    models = models_of(results.runs)
    temi, others = ([model for model in models if (model.method == "temi") == ours] for ours in (True, False))
    if not temi:
        return "No model on TEMI's clusters was measured."
    found: dict[int, list[tuple[Model, Verdict]]] = {number: [] for number in range(len(temi))}
    for condition in dict.fromkeys(model.variant for model in others):
        pairs = [
            (number, rival)
            for number, model in enumerate(temi)
            for rival in others
            if rival.variant == condition
            and (rival.method not in ("kmeans", "random") or rival.num_clusters == model.num_clusters)
        ]
        judged = verdicts([(temi[number], rival) for number, rival in pairs])
        for (number, rival), verdict in zip(pairs, judged, strict=True):
            found[number].append((rival, verdict))
    said = []
    for number, model in enumerate(temi):
        said += [f"{model}: {results.metric} {model.spread}.", *spoken_verdicts(found[number])]
    return " ".join(said)


@dataclass(frozen=True)
class BoundRange:
    """The numbers of clusters that `cedm bound` calls worth trying; `is_open`: nothing above `high` was tried."""

    low: float
    high: float
    is_open: bool

    def __str__(self) -> str:
        high = f"at least {self.high:.0f}" if self.is_open else f"{self.high:.0f}"
        return high if f"{self.low:.0f}" == f"{self.high:.0f}" else f"{self.low:.0f} to {high}"

    def place_of(self, C: int) -> str:
        return "below" if self.low > C else "above" if self.high < C and not self.is_open else "inside"


def bound_range(results: Results) -> BoundRange | None:
    """The range from the coarse end to the upper bound, whichever is the lower one; None without a bound."""
    bound = results.bound
    if not bound or bound["upper_bound"] is None:
        return None
    grid = [measurement["num_clusters"] for measurement in bound["measurements"]]
    ends = float(bound["coarse_end"] or min(grid)), float(bound["upper_bound"])
    return BoundRange(min(ends), max(ends), is_open=bound["upper_bound"] == max(grid))


def inside_the_bound(results: Results) -> str:
    """Whether TEMI's best C lies in the range that was told without labels and without a diffusion model."""
    models = [model for model in models_of(results.runs) if model.method == "temi" and model.num_clusters]
    if results.bound is None or not models:
        return ""
    bound = bound_range(results)
    if bound is None:
        return f"No C reaches the bound's threshold of {results.bound['threshold']}."
    winner = best(models)
    place = bound.place_of(winner.num_clusters or 0)
    said = f"TEMI's best C = {winner.num_clusters} lies {place} the range that the bound gives, {bound}"
    if place == "inside":
        return f"{said}."
    inside = [model for model in models if bound.place_of(model.num_clusters or 0) == "inside"]
    judged = [(model, verdict_on_best(winner, model, models)) for model in inside]
    equal = [f"C = {model.num_clusters}" for model, verdict in judged if verdict == "undecided"]
    if equal:
        return f"{said}; inside it, {enumerated(equal)} {'is' if len(equal) == 1 else 'are'} not told apart from it."
    if any(verdict == "untested" for _, verdict in judged):
        return f"{said}; not tested against those inside it, as a side has a single value."
    return f"{said}, and {'is better than all C inside it' if inside else 'no C that was tried lies inside it'}."


def first_and_others(models: Sequence[Model], metric: str) -> str:
    """The best model, and which others are not told apart from it."""
    if not models:
        return "No distance was measured."
    first = best(models)
    judged = [(model, verdict_on_best(first, model, models)) for model in models if model != first]
    sentences = [f"The best is {first.name} with {metric} {first.spread}."]
    for verdict, words in (("undecided", "Not told apart from it"), ("untested", "Not tested against it")):
        rivals = [model.name for model, found in judged if found == verdict]
        sentences += [f"{words}: {', '.join(rivals)}."] if rivals else []
    if judged and all(verdict == "lower" for _, verdict in judged):
        sentences.append("All others are worse." if len(judged) > 1 else "The other is worse.")
    return " ".join(sentences)


def fewer_images(results: Results) -> str:
    """How many times fewer images each condition needs for the best that no condition reaches."""
    measured = [run for run in results.runs if run.curve]
    plain = [run for run in measured if run.method == "none"]
    if not plain or len(plain) == len(measured):
        return "Not to be told: it takes curves of a model without condition and of one with."
    sentences, held = [], []
    for base in plain:
        rivals = [run for run in measured if run.method != "none" and run.seed == base.seed]
        sentences += fewer_than(base, rivals, results.metric, which="" if len(plain) == 1 else f" ({base.name})")
        held += [images_saved(base.curve, run.curve).reaches(CLAIMED_FEWER) for run in rivals if run.is_clustering]
    return " ".join([*sentences, *claim_held(held)])


def fewer_than(base: Result, rivals: Sequence[Result], metric: str, which: str) -> list[str]:
    """What one model without condition reaches, and of each other condition the model that is there first."""
    target = min(distance for _, distance in base.curve)
    start = images_to_reach(base.curve, target)
    assert start is not None
    sentences = [f"Without condition{which}, the lowest {metric} is {target:.3g}, reached after {taken(start)}."]
    for group in dict.fromkeys(run.group for run in rivals):
        members = [run for run in rivals if run.group == group]
        there = [(found, run) for run in members if (found := images_to_reach(run.curve, target))]
        if not there:
            sentences.append(f"With {name_of(group)}, no model gets there.")
            continue
        found, run = min(there, key=lambda item: item[0].kimg)
        model = "" if run.name == group else f" ({run.name})"
        model = f" ({run.name}, the first of {len(members)})" if len(members) > 1 else model
        sentences.append(f"With {name_of(group)}{model} that takes {taken(found)}, {times_fewer(start, found)}.")
    return sentences


def taken(crossing: Crossing) -> str:
    return f"{'at most ' if crossing.at_most else ''}{crossing.kimg:.3g} kimg"


def times_fewer(start: Crossing, found: Crossing) -> str:
    """`2.2 times fewer`, `at least 4.0 times fewer`, `as many` or `1.5 times more`."""
    ratio = start.kimg / found.kimg
    if start.at_most and found.at_most:
        return "as many, as far as the measured points tell"
    if f"{ratio:.1f}" == "1.0":
        return "as many or fewer" if found.at_most else "as many or more" if start.at_most else "as many"
    if ratio > 1:
        return f"{'at least ' if found.at_most else 'at most ' if start.at_most else ''}{ratio:.1f} times fewer"
    return f"{'at most ' if found.at_most else 'at least ' if start.at_most else ''}{1 / ratio:.1f} times more"


def claim_held(held: Sequence[bool | None]) -> list[str]:
    """Of how many models on clusters the claim is true, and of how many the curves begin too late to tell."""
    if not held:
        return []
    claim = f"At least {CLAIMED_FEWER} times fewer images:"
    if len(held) == 1:
        said = {True: "yes", False: "no", None: "undecided"}[held[0]]
        return [f"{claim} {said}, for the model on clusters."]
    yes, undecided = list(held).count(True), list(held).count(None)
    rest = f", undecided for {undecided}" if undecided else ""
    return [f"{claim} {yes or 'none'} of {len(held)} models on clusters{rest}."]


def correlation_table(results: Results) -> dict[str, Correlation]:
    """Predictor → its correlation with the mean distance, over the clusterings of the images."""
    runs = [run for run in clusterings(results) if run.distances]
    distances = [mean(run.distances) for run in runs]
    found = {"C": correlation([float(run.num_clusters or 0) for run in runs], distances)}
    for key in PREDICTORS:
        if runs and all(key in run.scores for run in runs):
            found[key] = correlation([run.scores[key] for run in runs], distances)
    return {name: value for name, value in found.items() if value is not None}


def what_predicts(results: Results) -> str:
    """Which of the scores go with the distance, and in which direction, as far as intervals and p-values tell."""
    table = correlation_table(results)
    if not table:
        return "Not to be told: fewer than four clusterings with a distance, or they are all alike."
    n = next(iter(table.values())).n
    told = {name: f"{SPOKEN[name]} (ρ = {found.spearman})" for name, found in table.items()}
    shown = [name for name, found in table.items() if found.is_shown]
    said = []
    for direction, sign in (("lower", -1), ("higher", 1)):
        going = [told[name] for name in shown if sign * table[name].spearman.value > 0]
        said += [f"the higher {enumerated(going)}, the {direction} {results.metric}"] if going else []
    rest = [text for name, text in told.items() if name not in shown]
    others = f" Not shown to go with it: {enumerated(rest)}." if rest else ""
    found = "; ".join(said) or f"nothing goes with {results.metric}"
    if n == 4:  # 24 orders: the rarest two come about by chance in 8 % of cases
        others += " With four clusterings nothing could be shown, whatever their order."
    return f"Over {n} clusterings, by rank correlation: {found}.{others}"
