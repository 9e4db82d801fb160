"""The charts of a study by name, each with what it shows: the sentence is computed from the numbers, as they fall."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from statistics import mean

from pipeline.studies.analysis import Correlation, compare, correlation, images_to_reach, spread
from pipeline.studies.chart import Chart, Series, colour_of, name_of
from pipeline.studies.results import Result, Results

PREDICTORS = {
    "nmi": "NMI (%)",
    "accuracy": "accuracy (%)",
    "ari": "ARI (%)",
    "ami": "AMI (%)",
    "utilization_ratio": "utilization ratio",
}
SPOKEN = {name: text.removesuffix(" (%)") for name, text in PREDICTORS.items()} | {"C": "C"}
CLAIMED_FEWER = 3  # times fewer images (arXiv 2403.00570: 3 to 5)


def grouped(runs: Sequence[Result]) -> dict[tuple[str, int | None], list[float]]:
    """(variant, C) → its distances over all sets of sampling seeds and all training seeds."""
    found: dict[tuple[str, int | None], list[float]] = {}
    for run in runs:
        found.setdefault((run.variant, run.num_clusters), []).extend(run.distances)
    return {key: distances for key, distances in found.items() if distances}


def describe(key: tuple[str, int | None]) -> str:
    """`TEMI with C = 40`, or `no condition`."""
    group, num_clusters = key
    return name_of(group) if num_clusters is None or group == "labels" else f"{name_of(group)} with C = {num_clusters}"


def best(values: dict[tuple[str, int | None], list[float]]) -> tuple[str, int | None]:
    return min(values, key=lambda key: mean(values[key]))


def clusterings(results: Results) -> list[Result]:
    return [run for run in results.runs if run.is_clustering]


def error_bars(results: Results, pooled: bool = True) -> str:
    """What the error bars mean; `pooled`: trainings from several seeds make one point."""
    seeds = len({run.seed for run in results.runs}) if pooled else 1
    sets = max((len(run.distances) for run in results.runs), default=0)
    trainings = "one training for each" if seeds == 1 else f"{seeds} trainings for each point"
    if sets < 2 and seeds < 2:
        return "One set of sampling seeds and one training for each, so there are no error bars."
    return (
        f"Error bars: standard deviation over {sets} {'set' if sets == 1 else 'sets'} of sampling seeds; {trainings}."
    )


def granularity(results: Results) -> Chart:
    """Distance against C, with the conditions that have no C of their own as levels, and the bound's range shaded."""
    values = grouped(results.runs)
    series, grid = [], sorted({run.num_clusters for run in results.runs if run.num_clusters and run.group != "labels"})
    for position, group in enumerate(dict.fromkeys(run.variant for run in results.runs)):
        points = [(C, spread(values[group, C])) for C in grid if (group, C) in values]
        colour = colour_of(group, position)
        if group in ("none", "labels"):
            level = [distances for key, distances in values.items() if key[0] == group]
            series += [
                Series(f"{name_of(group)} ({spread(d)})", [], [mean(d)], style="level", colour=colour) for d in level
            ]
        elif points:
            notes = [f"{describe((group, C))}: {found}" for C, found in points]
            xs, means, errors = [C for C, _ in points], [s.mean for _, s in points], [s.std for _, s in points]
            series.append(Series(name_of(group), xs, means, errors, "line", notes, colour))
    return Chart(
        name="granularity",
        title="Distance against the number of clusters",
        x_name="number of clusters C",
        y_name=f"{results.metric} (lower is better)",
        series=series,
        finding=" ".join(part for part in (best_against_controls(results), inside_the_bound(results)) if part),
        how=error_bars(results),
        x_log=True,
        shaded=bound_range(results),
        ticks=[float(C) for C in grid],
    )


def best_against_controls(results: Results) -> str:
    """The best clustering, and whether it beats each control."""
    own, values = grouped(clusterings(results)), grouped(results.runs)
    if not own:
        return "No clustering was measured."
    winner = best(own)
    said = [f"The best clustering is {describe(winner)}: {results.metric} {spread(own[winner])}."]
    controls = [key for key in values if key[0] in ("none", "labels")] + random_best(values)
    verdicts = {key: compare(own[winner], values[key]) for key in controls}
    for verdict, words in (("lower", "better than"), ("higher", "worse than"), ("undecided", "not told apart from")):
        found = [f"{describe(key)} ({spread(values[key])})" for key in controls if verdicts[key] == verdict]
        said += [f"It is {words} {enumerated(found)}."] if found else []
    return " ".join(said)


def enumerated(texts: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join(part for part in (", ".join(texts[:-1]), *texts[-1:]) if part)


def random_best(values: dict[tuple[str, int | None], list[float]]) -> list[tuple[str, int | None]]:
    found = {key: distances for key, distances in values.items() if key[0] == "random"}
    return [best(found)] if found else []


def bound_range(results: Results) -> tuple[float, float, str] | None:
    """The numbers of clusters that `cedm bound` calls worth trying."""
    bound = results.bound
    if not bound or bound["upper_bound"] is None:
        return None
    grid = [measurement["num_clusters"] for measurement in bound["measurements"]]
    low, high = float(bound["coarse_end"] or min(grid)), float(bound["upper_bound"])
    return (min(low, high), high, f"bound: {min(low, high):g} to {high:g}")


def inside_the_bound(results: Results) -> str:
    """Whether TEMI's best C lies in the range that was told without labels and without a diffusion model."""
    values = grouped([run for run in results.runs if run.method == "temi"])
    if results.bound is None or not values:
        return ""
    shaded = bound_range(results)
    if shaded is None:
        return f"No C reaches the bound's threshold of {results.bound['threshold']}."
    low, high, _ = shaded
    winner = best(values)
    C = winner[1] or 0
    place = "below" if low > C else "above" if high < C else "inside"
    said = f"TEMI's best C = {C} lies {place} the range that the bound gives, {low:g} to {high:g}"
    if place == "inside":
        return f"{said}."
    inside = [key for key in values if low <= (key[1] or 0) <= high]
    equal = [f"C = {key[1]}" for key in inside if compare(values[winner], values[key]) == "undecided"]
    if equal:
        return f"{said}; inside it, {enumerated(equal)} {'is' if len(equal) == 1 else 'are'} not told apart from it."
    return f"{said}, and {'is better than all C inside it' if inside else 'no C that was tried lies inside it'}."


def efficiency(results: Results) -> Chart:
    """Distance against images seen, and how many times fewer of them each condition needs than none does."""
    apart = len({run.method for run in results.runs}) == len(results.runs)
    series = []
    for position, run in enumerate(results.runs):
        if run.curve:
            xs, ys = [kimg for kimg, _ in run.curve], [distance for _, distance in run.curve]
            notes = [f"{run.name}: {y:.3g} after {x:g} kimg" for x, y in run.curve]
            series.append(
                Series(run.name, xs, ys, None, "line", notes, colour_of(run.method if apart else "", position))
            )
    return Chart(
        name="efficiency",
        title="Distance against images seen",
        x_name="thousand training images seen",
        y_name=f"{results.metric} (lower is better)",
        series=series,
        finding=fewer_images(results),
        y_log=True,
        how="Every point is measured on the same sampling seeds; between two points the curve is taken as straight.",
    )


def fewer_images(results: Results) -> str:
    """How many times fewer images each condition needs for the last distance of no condition: the best of its group."""
    measured = [run for run in results.runs if run.curve]
    plain = [run for run in measured if run.method == "none"]
    if not plain or len(plain) == len(measured):
        return "Not to be told: it takes curves of a model without condition and of one with."
    sentences, ratios = [], []
    for base in plain:
        kimg, target = base.curve[-1]
        sentences.append(f"Without condition, {results.metric} is {target:.3g} after {kimg:g} kimg.")
        rivals = [run for run in measured if run.method != "none" and run.seed == base.seed]
        reached = {run.name: images_to_reach(run.curve, target) for run in rivals}
        for group in dict.fromkeys(run.group for run in rivals):
            there = [(found.kimg, found, run) for run in rivals if run.group == group and (found := reached[run.name])]
            if not there:
                sentences.append(f"With {name_of(group)}, no model gets there.")
                continue
            _, found, run = min(there, key=lambda item: item[0])
            most, least = ("at most ", "at least ") if found.at_most else ("", "")
            model = "" if run.name == group else f" ({run.name})"
            ratio = f"{least}{kimg / found.kimg:.1f} times fewer"
            sentences.append(f"With {name_of(group)}{model} that takes {most}{found.kimg:.3g} kimg, {ratio}.")
        for run in rivals:
            found = reached[run.name]
            ratios += [kimg / found.kimg if found else 0.0] if run.is_clustering else []
    if ratios:
        held = sum(ratio >= CLAIMED_FEWER for ratio in ratios)
        sentences.append(
            f"{held} of {len(ratios)} models on clusters need at least {CLAIMED_FEWER} times fewer images."
        )
    return " ".join(sentences)


def scatter(results: Results, score: str) -> Chart:
    """A clustering score against the distance, a dot for each clustering, marked with its C."""
    runs = [run for run in clusterings(results) if run.distances and score in run.scores]
    series = []
    for position, group in enumerate(dict.fromkeys(run.group for run in runs)):
        members = [run for run in runs if run.group == group]
        xs, ys = [run.scores[score] for run in members], [mean(run.distances) for run in members]
        notes = [
            f"{run.name}: {SPOKEN[score]} {x:.1f} %, {results.metric} {y:.3g}"
            for run, x, y in zip(members, xs, ys, strict=True)
        ]
        marks = [str(run.num_clusters) for run in members]
        series.append(Series(name_of(group), xs, ys, None, "dots", notes, colour_of(group, position), marks))
    found = correlation_table(results).get(score)
    said = f"{SPOKEN[score]}: Pearson's r = {found.pearson}, Spearman's ρ = {found.spearman}." if found else ""
    return Chart(
        name=f"correlation_{score}",
        title=f"The distance against {SPOKEN[score]}",
        x_name=PREDICTORS[score],
        y_name=f"{results.metric} (lower is better)",
        series=series,
        finding=said
        or f"Not to be told of {SPOKEN[score]}: unknown of some clusterings, or they are fewer than four or alike.",
        how="A dot for each clustering of the images, marked with C; no controls. "
        "Intervals: 95 % bootstrap over these dots.",
        from_zero=False,
    )


def correlations(results: Results) -> Chart:
    """NMI against the distance, with what all scores say of it."""
    return replace(
        scatter(results, "nmi"),
        name="correlation",
        title="Does a better clustering make better images?",
        finding=what_predicts(results),
    )


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
    """Which of the scores go with the distance, as far as the intervals tell."""
    table = correlation_table(results)
    if not table:
        return "Not to be told: fewer than four clusterings with a distance, or they are all alike."
    n = next(iter(table.values())).n
    told = {name: f"{SPOKEN[name]} (ρ = {found.spearman})" for name, found in table.items()}
    going = [text for name, text in told.items() if table[name].spearman.excludes_zero]
    rest = [text for text in told.values() if text not in going]
    shown = f"{enumerated(going) or 'nothing'} {'go' if len(going) > 1 else 'goes'} with {results.metric}"
    others = f" Not shown to: {enumerated(rest)}." if rest else ""
    return f"Over {n} clusterings, by rank correlation, {shown}.{others}"


def bars(results: Results) -> Chart:
    """The distance of every run, the best first."""
    ranked = sorted((run for run in results.runs if run.distances), key=lambda run: mean(run.distances))
    series = []
    for position, method in enumerate(dict.fromkeys(run.method for run in ranked)):
        members = [(run.name, spread(run.distances)) for run in ranked if run.method == method]
        names, means, errors = [n for n, _ in members], [s.mean for _, s in members], [s.std for _, s in members]
        notes = [f"{name}: {found}" for name, found in members]
        series.append(Series(name_of(method), names, means, errors, "bars", notes, colour_of(method, position)))
    return Chart(
        name="bars",
        title="The distance of every model",
        x_name="",
        y_name=f"{results.metric} (lower is better)",
        series=series,
        finding=first_and_second(ranked, results.metric),
        how=error_bars(results, pooled=False),
        bar_names=[run.name for run in ranked],
    )


def first_and_second(ranked: Sequence[Result], metric: str) -> str:
    """The best model, and which others the sampling seeds do not tell from it."""
    if not ranked:
        return "No distance was measured."
    first, equal = ranked[0], [run.name for run in ranked[1:] if compare(ranked[0].distances, run.distances) != "lower"]
    rest = f" Not told apart from it: {', '.join(equal)}." if equal else " All others are worse." if ranked[1:] else ""
    return f"The best is {first.name} with {metric} {spread(first.distances)}.{rest}"


def confidence(results: Results) -> Chart:
    """How often a generated image falls into the cluster that was asked for, against the head's confidence."""
    runs = [run for run in results.runs if run.confidence is not None]
    series, sentences = [], []
    for position, run in enumerate(runs):
        found = run.confidence
        assert found is not None
        xs, ys = [sure for sure, _ in found.deciles], [100 * agreed for _, agreed in found.deciles]
        notes = [f"{run.name}: confidence {x:.2f}, agreement {y:.0f} %" for x, y in zip(xs, ys, strict=True)]
        method = run.method if len(runs) == 1 else ""
        series.append(Series(run.name, xs, ys, None, "line", notes, colour_of(method, position)))
        sentences.append(
            f"{run.name}: {100 * found.agreement:.0f} % of the generated images fall into the cluster that was asked "
            f"for, {100 * found.agreement_kept:.0f} % of the most confident {100 * found.keep:.0f} %."
        )
        if found.distances_kept and run.distances:
            verdict = compare(found.distances_kept, run.distances)
            word = {"lower": "better", "higher": "worse", "undecided": "not told apart"}[verdict]
            sentences.append(
                f"{results.metric} of the most confident is {spread(found.distances_kept)}, "
                f"of as many without choice {spread(run.distances)}: {word}."
            )
    return Chart(
        name="confidence",
        title="Do images fall into the cluster that was asked for?",
        x_name="maximum softmax probability",
        y_name="images in the cluster asked for (%)",
        series=series,
        finding=" ".join(sentences) or "No model on TEMI's clusters was measured.",
        how="Generated images sorted by the confidence of the clustering head, in tenths, over all sampling seeds. "
        "The most confident ones are chosen within each cluster that was asked for.",
    )


CHARTS: dict[str, Callable[[Results], Chart]] = {
    "granularity": granularity,
    "efficiency": efficiency,
    "correlation": correlations,
    "correlation_accuracy": partial(scatter, score="accuracy"),
    "correlation_ari": partial(scatter, score="ari"),
    "bars": bars,
    "confidence": confidence,
}
