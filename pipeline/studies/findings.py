"""The charts of a study by name, each with what it shows: what is drawn, and the sentence beside it."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from statistics import mean

from pipeline.pictures.chart import Chart, Series, colour_of, name_of
from pipeline.studies.analysis import p_value, spread, verdict
from pipeline.studies.models import WITHOUT_C, clusterings, models_of
from pipeline.studies.results import Results
from pipeline.studies.sentences import (
    PREDICTORS,
    SHORT_WORDS,
    SPOKEN,
    best_against_controls,
    bound_range,
    correlation_table,
    fewer_images,
    first_and_others,
    how_compared,
    inside_the_bound,
    temi_against_kmeans,
    temi_against_others,
    what_predicts,
)


def error_bars(results: Results, pooled: bool = True) -> str:
    """What the error bars mean; `pooled`: trainings from several seeds make one point."""
    seeds = len({run.seed for run in results.runs}) if pooled else 1
    sets = max((len(run.distances) for run in results.runs), default=0)
    over_sets = f"{sets} {'set' if sets == 1 else 'sets'} of sampling seeds"
    if seeds > 1:
        return f"Error bars: standard deviation over {seeds} trainings, each the mean of {over_sets}."
    if sets < 2:
        return "One set of sampling seeds and one training for each, so there are no error bars."
    return f"Error bars: standard deviation over {over_sets}; one training for each."


def granularity(results: Results) -> Chart:
    """Distance against C, with the conditions that have no C of their own as levels, and the bound's range shaded."""
    models = models_of(results.runs)
    grid, series = sorted({model.num_clusters for model in models if model.num_clusters}), []
    variants = list(dict.fromkeys((model.variant, model.method) for model in models))
    for position, (variant, method) in enumerate(variants):
        members = [model for model in models if (model.variant, model.method) == (variant, method)]
        alone = [other for _, other in variants].count(method) == 1
        colour = colour_of(method if alone else variant, position)
        if method in WITHOUT_C:
            series += [
                Series(f"{name_of(variant)} ({m.spread})", [], [m.spread.mean], style="level", colour=colour)
                for m in members
            ]
            continue
        members = sorted((model for model in members if model.num_clusters), key=lambda model: model.num_clusters or 0)
        if members:
            xs, means = [model.num_clusters or 0 for model in members], [model.spread.mean for model in members]
            notes, errors = [f"{m}: {m.spread}" for m in members], [m.spread.std for m in members]
            series.append(Series(name_of(variant), xs, means, errors, "line", notes, colour))
    said = (best_against_controls(results), temi_against_kmeans(results), inside_the_bound(results))
    bound = bound_range(results)
    return Chart(
        name="granularity",
        title="Distance against the number of clusters",
        x_name="number of clusters C",
        y_name=f"{results.metric} (lower is better)",
        series=series,
        finding=" ".join(part for part in said if part),
        how=f"{error_bars(results)} {how_compared(results, models_of(clusterings(results)), 'clusterings tried')}",
        x_log=True,
        shaded=None if bound is None else (bound.low, bound.high, f"bound: {bound}"),
        ticks=[float(C) for C in grid],
    )


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
        how="Each curve is one training, measured on one set of sampling seeds, the same for all, without error bars. "
        "What counts is the best so far; between two points it is taken as straight.",
    )


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
    said = (
        f"{SPOKEN[score]}: Pearson's r = {found.pearson}, Spearman's ρ = {found.spearman}, p = {found.p_value:.2g}."
        if found
        else ""
    )
    return Chart(
        name=f"correlation_{score}",
        title=f"The distance against {SPOKEN[score]}",
        x_name=PREDICTORS[score],
        y_name=f"{results.metric} (lower is better)",
        series=series,
        finding=said
        or f"Not to be told of {SPOKEN[score]}: unknown of some clusterings, or they are fewer than four or alike.",
        how="A dot for each clustering of the images, marked with C; no controls. "
        "Intervals: 95 % bootstrap over these dots; p from permutations of them.",
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
        finding=first_and_others(models_of(ranked), results.metric),
        how=f"{error_bars(results, pooled=False)} {how_compared(results, models_of(ranked)[1:], 'models beside each')}",
        bar_names=[run.name for run in ranked],
    )


def conditions(results: Results) -> Chart:
    """The same bars, with what they say of TEMI's clusters."""
    temi = [model for model in models_of(results.runs) if model.method == "temi"]
    return replace(
        bars(results),
        how=f"{error_bars(results, pooled=False)} {how_compared(results, temi, 'numbers of clusters')}",
        name="conditions",
        title="TEMI's clusters against every other condition",
        finding=temi_against_others(results),
    )


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
            p = p_value(found.distances_kept, run.distances, paired=False)  # the kept ones are of other seeds
            judged = verdict(found.distances_kept, run.distances, p)
            sentences.append(
                f"{results.metric} of the most confident is {spread(found.distances_kept)}, "
                f"of as many without choice {spread(run.distances)}: {SHORT_WORDS[judged]}."
            )
    return Chart(
        name="confidence",
        title="Do images fall into the cluster that was asked for?",
        x_name="maximum softmax probability",
        y_name="images in the cluster asked for (%)",
        series=series,
        finding=" ".join(sentences) or "No model on TEMI's clusters was measured.",
        how="Generated images sorted by the confidence of the clustering head, in tenths, over all sampling seeds. "
        "The most confident ones are chosen within each cluster that was asked for. Better, worse or not told apart: "
        "Welch's t-test over the sets of sampling seeds, at 5 %.",
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
}
