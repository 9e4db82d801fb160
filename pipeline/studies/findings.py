"""The charts of a study by name: what is drawn, the comparisons behind it as a table, and one short finding.

Verdicts and findings are computed, so that what doesn't hold in the numbers isn't said.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import mean
from typing import Any

from pipeline.pictures.bound import BoundFindings
from pipeline.pictures.chart import Chart, Series, colour_of, name_of
from pipeline.pictures.table import Table
from pipeline.studies.analysis import (
    Correlation,
    Verdict,
    block_p_values,
    correlation,
    holm,
    images_saved,
    images_to_reach,
    p_value,
    spread,
    verdict,
)
from pipeline.studies.results import WITHOUT_C, Model, Results

PREDICTORS = {
    "nmi": "NMI (%)",
    "accuracy": "accuracy (%)",
    "ari": "ARI (%)",
    "ami": "AMI (%)",
    "utilization_ratio": "utilization ratio",
}
WORDS: dict[Verdict, str] = {
    "better": "better than",
    "worse": "worse than",
    "not significantly different": "not significantly different from",
    "not tested": "not tested (a single value) against",
}


@dataclass(frozen=True)
class Comparison:
    """Whether a model is better than a rival; `p` is corrected for the number of comparisons, None: not tested."""

    model: Model
    rival: Model
    p: float | None

    @property
    def verdict(self) -> Verdict:
        return verdict(self.model.values, self.rival.values, self.p)

    @property
    def cells(self) -> list[str]:
        """A line of a table."""
        model, rival = self.model.spread, self.rival.spread
        p = "" if self.p is None else f"{self.p:.2g}"
        return [str(self.model), str(model), str(self.rival), str(rival), f"{model.mean - rival.mean:+.3g}", p]


def p_values(pairs: Sequence[tuple[Model, Model]]) -> list[float | None]:
    """The p-values of the differences between the two of each pair; None where there are too few values for a test.

    Where all models were trained once and measured on as many sets, they tell together how much sets differ by chance.
    Of two models that were trained once, set i of the one is sampled from the same seeds as set i of the other.
    """
    sides: list[Model] = []
    for side in (side for pair in pairs for side in pair):
        if side not in sides:
            sides.append(side)
    sets = {len(side.values) for side in sides}
    if all(len(side.runs) == 1 and min(side.values) > 0 for side in sides) and len(sets) == 1 and min(sets) > 1:
        rows = [(sides.index(model), sides.index(rival)) for model, rival in pairs]
        return list(block_p_values([side.values for side in sides], rows))
    found: list[float | None] = []
    for model, rival in pairs:
        single = [len(side.runs) == 1 for side in (model, rival)]
        if any(single) and not all(single):
            found.append(None)  # trainings on one side, sets of one training on the other
        else:
            paired = all(single) and len(model.values) == len(rival.values)
            found.append(p_value(model.values, rival.values, paired))
    return found


def compare(pairs: Sequence[tuple[Model, Model]]) -> list[Comparison]:
    """Whether the first of each pair is better than the second, with Holm's correction over all pairs."""
    found = p_values(pairs)
    corrected = holm([1.0 if p is None else p for p in found])
    return [
        Comparison(model, rival, None if p is None else of_all)
        for (model, rival), p, of_all in zip(pairs, found, corrected, strict=True)
    ]


def compare_best(best: Model, rivals: Sequence[Model], tried: Sequence[Model]) -> list[Comparison]:
    """Whether the best of all that were tried is better than each rival.

    Of many, one looks good by chance; so it is judged as one of the comparisons of all with that rival.
    """
    found = [one for rival in rivals for one in compare([(model, rival) for model in tried if model != rival])]
    return [comparison for comparison in found if comparison.model == best]


def lowest(models: Sequence[Model]) -> Model:
    return min(models, key=lambda model: model.spread.mean)


def table_of(results: Results, comparisons: Sequence[Comparison]) -> Table | None:
    """A line for each comparison; None without any."""
    if not comparisons:
        return None
    test = "a t-test in blocks, as set by set all models are sampled from the same seeds"
    if len({run.seed for run in results.runs}) > 1:
        test = "Welch's t-test between the means of the trainings"
    header = ["model", results.metric, "compared with", results.metric, "difference", "p", "verdict"]
    rows = [[*one.cells, one.verdict] for one in comparisons]
    return Table(f"Verdicts at 5 %: {test}; p with Holm's correction over all that were tried.", header, rows)


def in_words(comparisons: Sequence[Comparison]) -> str:
    """`better than a and b; not significantly different from c`."""
    rivals = {words: [str(one.rival) for one in comparisons if one.verdict == said] for said, words in WORDS.items()}
    return "; ".join(f"{words} {enumerated(names)}" for words, names in rivals.items() if names)


def enumerated(texts: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join(part for part in (", ".join(texts[:-1]), *texts[-1:]) if part)


def distance_chart(results: Results, name: str, title: str, x_name: str, series: list[Series], **more: Any) -> Chart:
    return Chart(name, title, x_name, f"{results.metric} (lower is better)", series, **more)


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
    models, series = results.models, []
    variants = list(dict.fromkeys((model.variant, model.method) for model in models))
    for position, (variant, method) in enumerate(variants):
        members = [model for model in models if (model.variant, model.method) == (variant, method)]
        alone = [other for _, other in variants].count(method) == 1
        name, colour = name_of(variant), colour_of(method if alone else variant, position)
        for level in [model for model in members if model.num_clusters is None]:
            series.append(Series(f"{name} ({level.spread})", [], [level.spread.mean], style="level", colour=colour))
        points = {model.num_clusters: model.spread for model in members if model.num_clusters is not None}
        if points:
            found = [points[C] for C in sorted(points)]
            means, errors = [point.mean for point in found], [point.std for point in found]
            series.append(Series(name, sorted(points), means, errors, "line", colour))
    bound = BoundFindings.from_summary(results.bound).range if results.bound else None
    controls, where = against_controls(results), against_bound(results)
    said = (part for part, _ in (controls, where) if part)
    return distance_chart(
        results,
        "granularity",
        "Distance against the number of clusters",
        "number of clusters C",
        series,
        finding=" ".join(said),
        how=error_bars(results),
        table=table_of(results, [*controls[1], *against_kmeans(results), *where[1]]),
        x_log=True,
        shaded=None if bound is None else (bound.low, bound.high, f"bound: {bound}"),
    )


def against_controls(results: Results) -> tuple[str, list[Comparison]]:
    """The best clustering against each control; of several random ones the best."""
    own = [model for model in results.models if model.is_clustering]
    if not own:
        return "No clustering was measured.", []
    best = lowest(own)
    controls = [model for model in results.models if model.method in WITHOUT_C]
    random = [model for model in results.models if model.method == "random"]
    comparisons = compare_best(best, [*controls, *([lowest(random)] if random else [])], own)
    said = f"The best clustering is {best}: {results.metric} {best.spread}"
    return f"{said}; it is {in_words(comparisons)}." if comparisons else f"{said}.", comparisons


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
    if place == "inside":
        return f"{said}.", []
    inside = [model for model, where in zip(temi, places, strict=True) if where == "inside"]
    comparisons = compare_best(best, inside, temi)
    return f"{said}; it is {in_words(comparisons)}." if inside else f"{said}, in which no C was tried.", comparisons


def against_kmeans(results: Results) -> list[Comparison]:
    """TEMI's clusters against as many of k-means."""
    models = results.models
    temi, kmeans = ([model for model in models if model.method == method] for method in ("temi", "kmeans"))

    def alike(model: Model) -> tuple[int | None, list[str]]:
        return model.num_clusters, model.runs[0].values

    return compare([(ours, theirs) for ours in temi for theirs in kmeans if alike(ours) == alike(theirs)])


def efficiency(results: Results) -> Chart:
    """Distance against images seen, and how many times fewer of them each condition needs than none does."""
    measured = [run for run in results.runs if run.curve]
    apart, series = len({run.method for run in results.runs}) == len(results.runs), []
    for position, run in enumerate(measured):
        xs, ys = zip(*run.curve, strict=True)
        series.append(Series(run.name, xs, ys, None, "line", colour_of(run.method if apart else "", position)))
    rows, said = [], []
    for base in [run for run in measured if run.method == "none"]:
        rivals = [run for run in measured if run.method != "none" and run.seed == base.seed]
        saved = {run.name: images_saved(base.curve, run.curve) for run in rivals}
        target = min(distance for _, distance in base.curve)
        reached = {run.name: images_to_reach(run.curve, target) for run in (base, *rivals)}
        for name, crossing in reached.items():
            rows.append([name, f"{target:.3g}", str(crossing or "never"), str(saved.get(name, ""))])
        groups = dict.fromkeys(run.group for run in rivals)
        best = [max((r for r in rivals if r.group == group), key=lambda r: saved[r.name].high) for group in groups]
        times = ", ".join(f"{name_of(run.group)} {saved[run.name]} ({run.name})" for run in best)
        if best:
            lowest_there = f"its lowest {results.metric}, {target:.3g}, after {reached[base.name]} kimg"
            said.append(f"{base.name} reaches {lowest_there}. Times fewer images for the same: {times}.")
    header = ["model", f"{results.metric} to reach", "after kimg", "times fewer images"]
    return distance_chart(
        results,
        "efficiency",
        "Distance against images seen",
        "thousand training images seen",
        series,
        finding=" ".join(said) or "No answer: it takes curves of a model without condition and of one with.",
        how="Each curve is one training, measured on one set of sampling seeds, the same for all, without error bars.",
        table=Table("The best so far counts; between two points it is taken as straight.", header, rows)
        if said
        else None,
        y_log=True,
    )


def correlation_table(results: Results) -> dict[str, Correlation]:
    """Predictor → its correlation with the mean distance, over the clusterings of the images."""
    runs = [run for run in results.runs if run.is_clustering and run.distances]
    distances = [mean(run.distances) for run in runs]
    found = {"C": correlation([float(run.num_clusters or 0) for run in runs], distances)}
    for key in PREDICTORS:
        if runs and all(key in run.scores for run in runs):
            found[key] = correlation([run.scores[key] for run in runs], distances)
    return {name: value for name, value in found.items() if value is not None}


def spoken(score: str) -> str:
    return PREDICTORS.get(score, score).removesuffix(" (%)")


def scatter(results: Results, score: str) -> Chart:
    """A clustering score against the distance, a dot for each clustering, marked with its C."""
    runs = [run for run in results.runs if run.is_clustering and run.distances and score in run.scores]
    series = []
    for position, group in enumerate(dict.fromkeys(run.group for run in runs)):
        members = [run for run in runs if run.group == group]
        xs, ys = [run.scores[score] for run in members], [mean(run.distances) for run in members]
        marks = [str(run.num_clusters) for run in members]
        series.append(Series(name_of(group), xs, ys, None, "dots", colour_of(group, position), marks))
    name, found = spoken(score), correlation_table(results).get(score)
    return distance_chart(
        results,
        f"correlation_{score}",
        f"The distance against {name}",
        PREDICTORS[score],
        series,
        finding=f"{name}: Spearman's ρ = {found.spearman}, p = {found.p_value:.2g}."
        if found
        else f"No answer for {name}: unknown for some clusterings, or they are fewer than four or alike.",
        how="A dot for each clustering of the images, marked with C; no controls.",
        from_zero=False,
    )


def correlations(results: Results) -> Chart:
    """NMI against the distance, and which of all scores go with it."""
    found = correlation_table(results)
    shown = {
        sign: [spoken(name) for name, one in found.items() if one.is_shown and sign * one.spearman.value > 0]
        for sign in (-1, 1)
    }
    said = [f"the higher {enumerated(shown[-1])}, the lower {results.metric}"] if shown[-1] else []
    said += [f"the higher {enumerated(shown[1])}, the higher {results.metric}"] if shown[1] else []
    rest = [spoken(name) for name, one in found.items() if not one.is_shown]
    said += [f"not shown to go with {results.metric}: {enumerated(rest)}"] if rest else []
    n = max((one.n for one in found.values()), default=0)
    few = " With four, no order would show anything." if n == 4 else ""  # the rarest 2 of 24 come about in 8 % of cases
    rows = [
        [spoken(name), str(one.n), str(one.pearson), str(one.spearman), f"{one.p_value:.2g}"]
        for name, one in found.items()
    ]
    header = ["score", "clusterings", "Pearson's r [95 %]", "Spearman's ρ [95 %]", "p of ρ"]
    caption = f"What goes with {results.metric}: intervals from bootstrap over the clusterings, p from permutations."
    return replace(
        scatter(results, "nmi"),
        name="correlation",
        title="Does a better clustering make better images?",
        finding=f"Over {n} clusterings, by rank correlation: {'; '.join(said)}.{few}"
        if found
        else "No answer: fewer than four clusterings with a distance, or they are all alike.",
        table=Table(caption, header, rows) if found else None,
    )


def bars(results: Results) -> Chart:
    """The distance of every run, the best first, and the best model against every other."""
    ranked = sorted((run for run in results.runs if run.distances), key=lambda run: mean(run.distances))
    series = []
    for position, method in enumerate(dict.fromkeys(run.method for run in ranked)):
        members = {run.name: spread(run.distances) for run in ranked if run.method == method}
        means, errors = [found.mean for found in members.values()], [found.std for found in members.values()]
        series.append(Series(name_of(method), list(members), means, errors, "bars", colour_of(method, position)))
    finding, comparisons = "No distance was measured.", []
    if results.models:
        best = lowest(results.models)
        comparisons = compare_best(best, [model for model in results.models if model != best], results.models)
        said = f"; it is {in_words(comparisons)}" if comparisons else ""
        finding = f"The best is {best}: {results.metric} {best.spread}{said}."
    return distance_chart(
        results,
        "bars",
        "The distance of every model",
        "",
        series,
        finding=finding,
        how=error_bars(results, pooled=False),
        table=table_of(results, comparisons),
        bar_names=[run.name for run in ranked],
    )


def conditions(results: Results) -> Chart:
    """The same bars, with TEMI's clusters against each other condition: of as many clusters, where that was chosen."""
    temi, others = ([m for m in results.models if (m.method == "temi") == ours] for ours in (True, False))
    comparisons: list[Comparison] = []
    for condition in dict.fromkeys(model.variant for model in others):
        rivals = [model for model in others if model.variant == condition]
        comparisons += compare(
            [
                (model, rival)
                for model in temi
                for rival in rivals
                if rival.method not in ("kmeans", "random") or rival.num_clusters == model.num_clusters
            ]
        )
    said = [
        f"{model} ({results.metric} {model.spread}) is {in_words(found)}."
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
    series, rows = [], []
    for position, (run, found) in enumerate(runs):
        xs, ys = [sure for sure, _ in found.deciles], [100 * agreed for _, agreed in found.deciles]
        colour = colour_of(run.method if len(runs) == 1 else "", position)
        series.append(Series(run.name, xs, ys, None, "line", colour))
        row = [run.name, f"{100 * found.keep:.0f} %", f"{100 * found.agreement:.0f} %"]
        row += [f"{100 * found.agreement_kept:.0f} %", *[""] * 3]
        if found.distances_kept and run.distances:
            p = p_value(found.distances_kept, run.distances, paired=False)  # the kept ones are of other seeds
            judged = verdict(found.distances_kept, run.distances, p)
            row[4:] = [str(spread(run.distances)), str(spread(found.distances_kept)), judged]
        rows.append(row)
    header = ["model", "kept", "agreement of all", "of the kept", f"{results.metric} of all", "of the kept", "verdict"]
    said = [
        f"{name}: {share} of the generated images fall into the cluster asked for, {kept_share} of the most confident "
        f"{keep}" + (f", whose {results.metric} is {judged}." if judged else ".")
        for name, keep, share, kept_share, _, _, judged in rows
    ]
    caption = "The most confident images are chosen within each cluster. Verdicts at 5 %: Welch's t-test over the sets."
    return Chart(
        name="confidence",
        title="Do images fall into the cluster that was asked for?",
        x_name="maximum softmax probability",
        y_name="images in the cluster asked for (%)",
        series=series,
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
}
