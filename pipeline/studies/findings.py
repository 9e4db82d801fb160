"""The charts of a study by name: what is drawn, the comparisons behind it as a table, and one short finding.

Verdicts and findings are computed, so that what doesn't hold in the numbers isn't said.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from statistics import mean

from pipeline.pictures.bound import BoundFindings
from pipeline.pictures.chart import Chart, Series, colour_of, colours_of, name_of
from pipeline.pictures.table import Table
from pipeline.studies.analysis import (
    Correlation,
    correlation,
    holm,
    images_saved,
    images_to_reach,
    spread,
    verdict,
    welch_test,
)
from pipeline.studies.comparisons import Comparison, compare, compare_best, enumerated, in_words, lowest, table_of
from pipeline.studies.description_length import description_length
from pipeline.studies.results import CONTROLS, WITHOUT_C, Result, Results

PREDICTORS = {  # of the distance, and what their axis says
    "nmi": "NMI (%)",
    "accuracy": "accuracy (%)",
    "ari": "ARI (%)",
    "ami": "AMI (%)",
    "utilization_ratio": "utilization ratio",
}
SPOKEN = {"C": "C", **{name: text.removesuffix(" (%)") for name, text in PREDICTORS.items()}}


def error_bars(results: Results, pooled: bool = True) -> str:
    """What the error bars mean; `pooled`: trainings from several seeds make one point."""
    seeds = len({run.seed for run in results.runs}) if pooled else 1
    sets = max((len(run.distances) for run in results.runs), default=0)
    if seeds > 1:
        return f"Error bars: standard deviation over {seeds} trainings, each the mean of {sets} sets of sampling seeds."
    if sets < 2:
        return "One set of sampling seeds and one training for each, so there are no error bars."
    return f"Error bars: standard deviation over {sets} sets of sampling seeds; one training for each."


def granularity(results: Results) -> Chart:
    """Distance against C, with the conditions that have no C of their own as levels, and the bound's range shaded."""
    models, series = results.models, []
    for variant, colour in colours_of({model.variant: model.method for model in models}).items():
        name, members = name_of(variant), [model for model in models if model.variant == variant]
        for level in [model for model in members if model.num_clusters is None]:
            series.append(Series(f"{name} ({level.spread})", [], [level.spread.mean], style="level", colour=colour))
        points = {model.num_clusters: model.spread for model in members if model.num_clusters is not None}
        if points:
            found = [points[C] for C in sorted(points)]
            means, errors = [point.mean for point in found], [point.std for point in found]
            series.append(Series(name, sorted(points), means, errors, colour=colour))
    bound = BoundFindings.from_summary(results.bound).range if results.bound else None
    controls, where = against_controls(results), against_bound(results)
    return Chart(
        "granularity",
        "Distance against the number of clusters",
        "number of clusters C",
        results.metric_axis,
        series,
        finding=" ".join(said for said, _ in (controls, where) if said),
        how=error_bars(results),
        table=table_of(results, [*controls[1], *against_kmeans(results), *where[1]]),
        x_log=True,
        shaded=bound.shaded("bound") if bound else None,
    )


def against_controls(results: Results) -> tuple[str, list[Comparison]]:
    """The best clustering against each control; of several random ones the best."""
    own = [model for model in results.models if model.method not in CONTROLS]
    if not own:
        return "No clustering was measured.", []
    best = lowest(own)
    controls = [model for model in results.models if model.method in WITHOUT_C]
    random = [model for model in results.models if model.method == "random"]
    comparisons = compare_best(best, [*controls, *([lowest(random)] if random else [])], own)
    return in_words(f"The best clustering is {best}: {results.metric} {best.spread}", comparisons), comparisons


def against_bound(results: Results) -> tuple[str, list[Comparison]]:
    """Whether TEMI's best C lies in the range that was found without a diffusion model; if not, against those in it."""
    temi = [model for model in results.models if model.method == "temi" and model.num_clusters]
    if not results.bound or not temi:
        return "", []
    found = BoundFindings.from_summary(results.bound)
    if found.range is None:
        return f"No C reaches the bound's threshold of {found.threshold:g}.", []
    best, places = lowest(temi), [found.range.place_of(model.num_clusters or 0) for model in temi]
    place = places[temi.index(best)]
    said = f"TEMI's best C = {best.num_clusters} lies {place} the range of the bound, {found.range}"
    inside = [model for model, where in zip(temi, places, strict=True) if where == "inside"]
    if place != "inside" and not inside:
        return f"{said}, in which no C was tried.", []
    comparisons = compare_best(best, inside, temi) if place != "inside" else []
    return in_words(said, comparisons), comparisons


def against_kmeans(results: Results) -> list[Comparison]:
    """TEMI's clusters against as many of k-means."""
    temi, kmeans = ([model for model in results.models if model.method == method] for method in ("temi", "kmeans"))
    pairs = [(ours, theirs) for ours in temi for theirs in kmeans if ours.num_clusters == theirs.num_clusters]
    return compare([(ours, theirs) for ours, theirs in pairs if ours.runs[0].values == theirs.runs[0].values])


def efficiency(results: Results) -> Chart:
    """Distance against images seen, and how many times fewer of them each condition needs than none does."""
    measured = [run for run in results.runs if run.curve]
    colours = colours_of({run.name: run.method for run in measured})
    series = [
        Series(run.name, [kimg for kimg, _ in run.curve], [y for _, y in run.curve], colour=colours[run.name])
        for run in measured
    ]
    rows, said = [], []
    for base in [run for run in measured if run.method == "none"]:
        rivals = [run for run in measured if run.method != "none" and run.seed == base.seed]
        saved = {run.name: images_saved(base.curve, run.curve) for run in rivals}
        target = min(distance for _, distance in base.curve)
        reached = {run.name: images_to_reach(run.curve, target) for run in (base, *rivals)}
        for name, found in reached.items():
            kimg = "never" if math.isinf(found.high) else str(found)
            rows.append([name, f"{target:.3g}", kimg, str(saved.get(name, ""))])
        times = ", ".join(f"{name_of(run.group)} {saved[run.name]} ({run.name})" for run in rivals)
        if rivals:
            there = f"{results.metric} is {target:.3g}, after {reached[base.name]} kimg"
            said.append(f"Without condition ({base.name}) the lowest {there}. Times fewer images for it: {times}.")
    header = ["model", f"{results.metric} to reach", "after kimg", "times fewer images"]
    caption = "The best so far counts; between two points it is taken as straight."
    return Chart(
        "efficiency",
        "Distance against images seen",
        "thousand training images seen",
        results.metric_axis,
        series,
        finding=" ".join(said) or "No answer: it takes curves of a model without condition and of one with.",
        how="Each curve is one training, measured on one set of sampling seeds, the same for all, without error bars.",
        table=Table(caption, header, rows) if said else None,
        y_log=True,
    )


def clusterings(results: Results, *scores: str) -> list[Result]:
    """The measured runs on clusters of the images that have these scores."""
    return [
        run for run in results.runs if run.method not in CONTROLS and run.distances and {*scores} <= run.scores.keys()
    ]


def correlation_table(results: Results) -> dict[str, Correlation]:
    """Predictor → its correlation with the mean distance, over the clusterings of the images.

    The p-values are corrected for the number of predictors (Holm): of many, one goes with anything by chance.
    """
    runs = clusterings(results)
    predictors = {"C": [float(run.num_clusters or 0) for run in runs]}
    predictors |= {key: [run.scores[key] for run in runs] for key in PREDICTORS if clusterings(results, key) == runs}
    distances = [mean(run.distances) for run in runs]
    tried = {name: correlation(values, distances) for name, values in predictors.items()}
    found = {name: value for name, value in tried.items() if value is not None}
    corrected = holm([one.p_value for one in found.values()])
    return {name: replace(one, p_value=p) for (name, one), p in zip(found.items(), corrected, strict=True)}


def scatter(results: Results, score: str) -> Chart:
    """A clustering score against the distance, a dot for each clustering, marked with its C."""
    runs, series = clusterings(results, score), []
    for group, colour in colours_of({run.group: run.method for run in runs}).items():
        members = [run for run in runs if run.group == group]
        xs, ys = [run.scores[score] for run in members], [mean(run.distances) for run in members]
        marks = [str(run.num_clusters) for run in members]
        series.append(Series(name_of(group), xs, ys, style="dots", colour=colour, marks=marks))
    name, found = SPOKEN[score], correlation_table(results).get(score)
    return Chart(
        f"correlation_{score}",
        f"The distance against {name}",
        PREDICTORS[score],
        results.metric_axis,
        series,
        finding=f"{name}: Spearman's ρ = {found.spearman}, p = {found.p_value:.2g}, corrected for all scores."
        if found
        else f"No answer for {name}: unknown for some clusterings, or they are fewer than four or alike.",
        how="A dot for each clustering of the images, marked with C; no controls.",
    )


def correlations(results: Results) -> Chart:
    """NMI against the distance, and which of all scores go with it."""
    kinds: dict[str, list[str]] = {"lower": [], "higher": [], "not shown": []}
    rows, found = [], correlation_table(results)
    for key, one in found.items():
        sign = "higher" if one.spearman.value > 0 else "lower"
        kinds[sign if one.is_shown else "not shown"].append(SPOKEN[key])
        rows.append([SPOKEN[key], str(one.n), str(one.pearson), str(one.spearman), f"{one.p_value:.2g}"])
    rest = kinds.pop("not shown")
    said = [f"the higher {enumerated(names)}, the {sign} {results.metric}" for sign, names in kinds.items() if names]
    said += [f"not shown to predict {results.metric}: {enumerated(rest)}"] if rest else []
    header = ["score", "clusterings", "Pearson's r [95 %]", "Spearman's ρ [95 %]", "p of ρ"]
    caption = (
        f"What goes with {results.metric}: intervals from bootstrap over the clusterings; p from permutations, with "
        "Holm's correction over the scores."
    )
    return replace(
        scatter(results, "nmi"),
        name="correlation",
        title="Does a better clustering make better images?",
        finding=f"Over {len(clusterings(results))} clusterings, by rank correlation: {'; '.join(said)}."
        if found
        else "No answer: fewer than four clusterings with a distance, or they are all alike.",
        table=Table(caption, header, rows) if found else None,
    )


def bars(results: Results) -> Chart:
    """The distance of every run, the best first, and the best model against every other."""
    runs, series = [run for run in results.runs if run.distances], []
    for position, method in enumerate(dict.fromkeys(run.method for run in runs)):
        members = [run for run in runs if run.method == method]
        found, names = [spread(run.distances) for run in members], [run.name for run in members]
        means, errors = [one.mean for one in found], [one.std for one in found]
        series.append(Series(name_of(method), names, means, errors, "bars", colour_of(method, position)))
    finding, comparisons = "No distance was measured.", []
    if models := results.models:
        best = lowest(models)
        comparisons = compare_best(best, [model for model in models if model != best], models)
        finding = in_words(f"The best is {best}: {results.metric} {best.spread}", comparisons)
    table, how = table_of(results, comparisons), error_bars(results, pooled=False)
    return Chart("bars", "The distance of every model", "", results.metric_axis, series, finding, how, table)


def conditions(results: Results) -> Chart:
    """The same bars, with TEMI's clusters against each other condition: of as many clusters, where that was chosen."""
    temi, others = ([m for m in results.models if (m.method == "temi") == ours] for ours in (True, False))
    comparisons: list[Comparison] = []
    for condition in dict.fromkeys(model.variant for model in others):
        pairs = [(model, rival) for model in temi for rival in others if rival.variant == condition]
        chosen = ("kmeans", "random")  # their C
        comparisons += compare([(a, b) for a, b in pairs if b.method not in chosen or a.num_clusters == b.num_clusters])
    said = [
        in_words(f"{model}: {results.metric} {model.spread}", found)
        for model in temi
        if (found := [one for one in comparisons if one.model == model])
    ]
    return replace(
        bars(results),
        name="conditions",
        title="TEMI's clusters against every other condition",
        finding=" ".join(said) or "No model on TEMI's clusters was compared.",
        table=table_of(results, comparisons),
    )


def confidence(results: Results) -> Chart:
    """How often a generated image falls into the cluster that was asked for, against the head's confidence."""
    runs = [(run, run.confidence) for run in results.runs if run.confidence is not None]
    colours = colours_of({run.name: run.method for run, _ in runs})
    series, rows, said = [], [], []
    for run, found in runs:
        xs, ys = [sure for sure, _ in found.deciles], [100 * agreed for _, agreed in found.deciles]
        series.append(Series(run.name, xs, ys, colour=colours[run.name]))
        shares = [f"{100 * share:.0f} %" for share in (found.keep, found.agreement, found.agreement_kept)]
        keep, share, kept_share = shares
        of_all, of_kept, judged = "", "", ""
        if found.distances_kept and run.distances:
            test = welch_test(found.distances_kept, run.distances)  # the kept ones are of other seeds
            p = None if test is None else test.p
            judged = verdict(found.distances_kept, run.distances, p)
            of_all, of_kept = str(spread(run.distances)), str(spread(found.distances_kept))
        rows.append([run.name, *shares, of_all, of_kept, judged])
        said.append(
            f"{run.name}: {share} of the generated images fall into the cluster asked for, {kept_share} of the most "
            f"confident {keep}" + (f", whose {results.metric} is {judged}." if judged else ".")
        )
    header = ["model", "kept", "agreement of all", "of the kept", f"{results.metric} of all", "of the kept", "verdict"]
    caption = "The most confident images are chosen within each cluster. Verdicts at 5 %: Welch's t-test over the sets."
    return Chart(
        "confidence",
        "Do images fall into the cluster that was asked for?",
        "maximum softmax probability",
        "images in the cluster asked for (%)",
        series,
        finding=" ".join(said) or "No model on TEMI's clusters was measured.",
        how="Generated images sorted by the confidence of the clustering head, in tenths, over all sampling seeds.",
        table=Table(caption, header, rows) if rows else None,
    )


CHARTS: dict[str, Callable[[Results], Chart]] = {
    "granularity": granularity,
    "efficiency": efficiency,
    "correlation": correlations,
    "correlation_accuracy": partial(scatter, score="accuracy"),
    "correlation_ari": partial(scatter, score="ari"),
    "bars": bars,
    "conditions": conditions,
    "confidence": confidence,
    "description_length": description_length,
}
