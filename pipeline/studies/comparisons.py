"""Which of two models is better: tests, verdicts, their table and their words."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, median

from pipeline.pictures.table import Table
from pipeline.studies.analysis import POWER, Test, Verdict, block_tests, holm, verdict, welch_test
from pipeline.studies.results import Model, Results

MOST_NAMED = 5  # rivals in a sentence
WORDS: dict[Verdict, str] = {
    "better": "better than",
    "worse": "worse than",
    "not significantly different": "not significantly different from",
    "not tested": "not tested (a single value) against",
}
Pair = tuple[Model, Model]


@dataclass(frozen=True)
class Comparison:
    """Whether a model is better than a rival; `p` is corrected for the number of comparisons, None: not tested.

    True differences smaller than `missed_below` would be missed more often than in one of five studies.
    """

    model: Model
    rival: Model
    p: float | None
    missed_below: float | None = None

    @property
    def verdict(self) -> Verdict:
        return verdict(self.model.values, self.rival.values, self.p)

    @property
    def cells(self) -> list[str]:
        """A line of a table."""
        model, rival = self.model.spread, self.rival.spread
        p = "" if self.p is None else f"{self.p:.2g}" if self.p >= 1e-4 else "<0.0001"
        difference = f"{model.mean - rival.mean:+.3g}"
        missed = "" if self.missed_below is None else f"{self.missed_below:.2g}"
        return [str(self.model), str(self.rival), self.verdict, difference, missed, p, str(model), str(rival)]


def tests(pairs: Sequence[Pair]) -> list[Test | None]:
    """Tests of the differences between the two of each pair; None where they can't be tested.

    Where all models were trained once and measured on as many sets, they tell together how much sets differ by chance.
    """
    sides = [side for pair in pairs for side in pair]
    rows = [side for position, side in enumerate(sides) if side not in sides[:position]]  # each once
    sets = {len(side.values) for side in sides}
    if all(len(side.runs) == 1 and min(side.values) > 0 for side in sides) and len(sets) == 1 and min(sets) > 1:
        places = [(rows.index(model), rows.index(rival)) for model, rival in pairs]
        return list(block_tests([side.values for side in rows], places))
    # the sets of one training can't be compared with several trainings
    mixed = [(len(model.runs) == 1) != (len(rival.runs) == 1) for model, rival in pairs]
    return [
        None if unlike else welch_test(model.values, rival.values)
        for (model, rival), unlike in zip(pairs, mixed, strict=True)
    ]


def compare(pairs: Sequence[Pair]) -> list[Comparison]:
    """Whether the first of each pair is better than the second, with Holm's correction over all pairs."""
    found = tests(pairs)
    corrected = holm([1.0 if test is None else test.p for test in found])
    return [
        Comparison(model, rival, None) if test is None else Comparison(model, rival, of_all, test.missed_below)
        for (model, rival), test, of_all in zip(pairs, found, corrected, strict=True)
    ]


def compare_best(best: Model, rivals: Sequence[Model], tried: Sequence[Model]) -> list[Comparison]:
    """Whether the best of all that were tried is better than each rival.

    Of many, one looks good by chance; so it is judged as one of the comparisons of all with that rival.
    """
    found = [one for rival in rivals for one in compare([(model, rival) for model in tried if model != rival])]
    return [comparison for comparison in found if comparison.model == best]


def lowest(models: Sequence[Model]) -> Model:
    return min(models, key=lambda model: model.spread.mean)


def how_sure(results: Results) -> str:
    """How much trainings, or sets of one training, differ by chance, and which differences would be missed for it."""
    models = results.models
    if len(models) < 2:
        return ""
    trainings = pooled([model.values for model in models if len(model.runs) > 1])
    sets = pooled([run.distances for run in results.runs])
    level, found = mean(model.spread.mean for model in models), []
    if trainings is not None:
        of_which = f", {trainings / level:.1%} of the distance" if level > 0 else ""
        found.append(f"trainings from other seeds differ by {trainings:.2g} (standard deviation{of_which})")
    else:
        found.append(
            "with one training of each, it is not known how much trainings differ. Set study.seeds=[0,1,2] to know"
        )
    if sets is not None:
        found.append(f"sets of images of one training differ by {sets:.2g}")
    best = lowest(models)
    missed = [test.missed_below for test in tests([(best, rival) for rival in models if rival != best]) if test]
    if missed and max(missed) > 0:
        found.append(
            f"differences under {median(missed):.2g} would be missed in more than {1 - POWER:.0%} of such studies"
        )
    return f"How sure: {'; '.join(found)}."


def pooled(groups: Sequence[Sequence[float]]) -> float | None:
    """The standard deviation within groups, over all of them; None where none has two values."""
    freedom = sum(len(group) - 1 for group in groups)
    squares = sum((value - mean(group)) ** 2 for group in groups if group for value in group)
    return math.sqrt(squares / freedom) if freedom > 0 else None


def table_of(results: Results, comparisons: Sequence[Comparison]) -> Table | None:
    """A line for each comparison; None without any."""
    if not comparisons:
        return None
    test = (
        "a t-test in blocks, as set by set all models are sampled from the same seeds (one training of each: how much "
        "trainings differ is not known)"
    )
    if len({run.seed for run in results.runs}) > 1:
        test = "Welch's t-test between the means of the trainings"
    header = [
        "model", "compared with", "verdict", "difference", "missed below", "p",
        results.metric, f"{results.metric} compared with",
    ]  # fmt: skip
    caption = (
        f"Verdicts at 5 %: {test}; p with Holm's correction over all that were tried. True differences smaller than "
        f"“missed below” would be missed in more than {1 - POWER:.0%} of such studies, even without that correction."
    )
    return Table(caption, header, [one.cells for one in comparisons])


def in_words(said: str, comparisons: Sequence[Comparison]) -> str:
    """`said`; it is better than a and b; not significantly different from c.` Many rivals are counted."""
    parts = [said]
    for judged, words in WORDS.items():
        rivals = [str(one.rival) for one in comparisons if one.verdict == judged]
        if rivals:
            named = enumerated(rivals) if len(rivals) <= MOST_NAMED else f"{len(rivals)} others"
            parts.append(f"{'' if parts[1:] else 'it is '}{words} {named}")
    return "; ".join(parts) + "."


def enumerated(texts: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join(part for part in (", ".join(texts[:-1]), *texts[-1:]) if part)
