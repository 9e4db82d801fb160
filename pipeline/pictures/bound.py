"""The bound on the number of clusters, for terminal, files and pages: its chart, its table, its facts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightning_modules.clustering.bound import (
    COARSE_FROM,
    UPPER_BETA,
    Bound,
    Measurement,
    find_bound,
    mean_ratios,
    reaches,
    reaches_by_one,
)
from pipeline.pictures.chart import GREY, PALETTE, Chart, Series
from pipeline.pictures.table import Table

BY_ONE = " (✓)"  # where a single empty cluster would decide


@dataclass(frozen=True)
class BoundRange:
    """The numbers of clusters from the coarse end to the upper bound; `is_open`: nothing above `high` was tried."""

    low: float
    high: float
    is_open: bool

    def __str__(self) -> str:
        high = f"at least {self.high:g}" if self.is_open else f"{self.high:g}"
        return high if self.low == self.high else f"{self.low:g} to {high}"

    def shaded(self, name: str) -> tuple[float, float, str]:
        """For a chart; a single number is wide enough to be seen."""
        wider = 1.02 if self.low == self.high else 1
        return self.low / wider, self.high * wider, f"{name}: {self}"

    def place_of(self, C: int) -> str:
        return "below" if self.low > C else "above" if self.high < C and not self.is_open else "inside"


@dataclass(frozen=True)
class BoundFindings:
    """What `cedm bound` measured, and what it says under a rule."""

    measurements: Sequence[Measurement]
    threshold: float
    rule: str = "largest"
    used_when: str = "assigned"

    @classmethod
    def from_summary(cls, summary: Mapping[str, Any]) -> "BoundFindings":
        """Of the summary of `cedm bound`."""
        names = ("num_clusters", "beta", "seed", "num_used")
        measurements = [Measurement(*(one[name] for name in names)) for one in summary["measurements"]]
        return cls(measurements, summary["threshold"], summary["rule"], summary["used_when"])

    @property
    def bound(self) -> Bound:
        return find_bound(self.measurements, self.threshold, self.rule)

    @property
    def range(self) -> BoundRange | None:
        """The numbers of clusters worth trying, whichever end is the lower one; None without an upper bound."""
        found = self.bound
        if found.upper_bound is None:
            return None
        coarse = found.coarse_end or min(m.num_clusters for m in self.measurements)
        low, high = sorted((float(coarse), float(found.upper_bound)))
        return BoundRange(low, high, is_open=found.may_lie_higher(self.measurements))

    @property
    def facts(self) -> dict[str, str]:
        """The answer and how sure it is, name → text."""
        found = self.bound
        upper, coarse = str(found.upper_bound), "not measured (no β = 1)"
        if found.upper_bound is None:
            upper = f"none (no C reaches {self.threshold:g})"
            if self.used_when == "probable":
                upper += "; about half of the clusters lie above the mean probability 1/C: set bound.threshold=0.3"
        elif found.may_lie_higher(self.measurements):
            upper = f"at least {upper} (no larger C was tried)"
        if found.coarse_end is not None:
            coarse = f"{found.coarse_end:g}"
            if (largest := max(m.num_clusters for m in self.measurements)) < COARSE_FROM:
                coarse += f" (at C = {largest}: no C of {COARSE_FROM} or more was tried, where it settles)"
            if found.upper_bound is not None and found.coarse_end > found.upper_bound:
                coarse += " (above the upper bound)"
        return {
            "upper bound": upper,
            "how sure": how_sure(found),
            "at thresholds": ", ".join(f"{near:g}: {or_none(there)}" for near, there in found.by_threshold.items()),
            "coarse end": coarse,
            "worth training": f"C = {', '.join(map(str, found.worth_training)) or 'none'}",
            "threshold": f"{self.threshold:g}, rule {self.rule}",
        }

    @property
    def tables(self) -> list[Table]:
        """For each β the mean ratio of each C, and how many clusters each seed uses."""
        return [self.table(beta) for beta in sorted({m.beta for m in self.measurements})]

    def table(self, beta: float) -> Table:
        used = {(m.num_clusters, m.seed): str(m.num_used) for m in self.measurements if m.beta == beta}
        seeds, rows, means = sorted({seed for _, seed in used}), [], mean_ratios(self.measurements, beta)
        for C, (ratio, std) in means.items():
            mark = self.mark(C, ratio) if beta == UPPER_BETA else ""
            spread = f" ± {std:.3f}" if len(seeds) > 1 else ""
            rows.append([str(C), f"{ratio:.3f}{spread}{mark}", *(used.get((C, seed), "") for seed in seeds)])
        reached = f"; ✓: {self.threshold:g} or more" if beta == UPPER_BETA else ""
        if beta == UPPER_BETA and any(self.mark(C, ratio) == BY_ONE for C, (ratio, _) in means.items()):
            reached += f"; {BY_ONE.strip()}: one empty cluster on average or less, where a single one would decide"
        header = ["C", "utilization ratio", *(f"used, seed {seed}" for seed in seeds)]
        return Table(f"Clusters that are used at β = {beta:g}{reached}.", header, rows)

    def mark(self, C: int, ratio: float) -> str:
        """What stands behind the ratio of a C that counts as at the threshold."""
        if reaches_by_one(C, ratio, self.threshold):
            return BY_ONE
        return " ✓" if reaches(C, ratio, self.threshold) else ""

    def chart(self, name: str = "") -> Chart:
        """The utilization ratio against C, a line for each β, with the threshold and the range worth trying."""
        series = []
        for beta, colour in zip(sorted({m.beta for m in self.measurements}), PALETTE[1:], strict=False):
            means = mean_ratios(self.measurements, beta)
            ratios, errors = [ratio for ratio, _ in means.values()], [std for _, std in means.values()]
            series.append(Series(f"β = {beta:g}", list(means), ratios, errors, colour=colour))
        level = Series(f"threshold {self.threshold:g}", [], [self.threshold], style="level", colour=GREY)
        seeds, found = {m.seed for m in self.measurements}, self.range
        return Chart(
            name="bound",
            title=f"{name}: how many clusters are worth having" if name else "Share of the clusters that are used",
            x_name="number of clusters C",
            y_name="utilization ratio (clusters used / C)",
            series=[*series, level],
            how="Error bars: standard deviation over the seeds." if len(seeds) > 1 else "One seed, so no error bars.",
            x_log=True,
            shaded=found.shaded("worth trying") if found else None,
        )


def how_sure(found: Bound) -> str:
    """The agreement of the seeds in words."""
    if len(found.by_seed) <= 1:
        return "unknown: one seed only (cedm bound dataset=… bound.num_seeds=3 would tell)"
    agreeing = list(found.by_seed.values()).count(found.upper_bound)
    said = ", ".join(map(or_none, found.by_seed.values()))
    return f"{agreeing} of {len(found.by_seed)} seeds give the same bound by themselves ({said})"


def or_none(bound: int | None) -> str:
    """A bound in words."""
    return "none" if bound is None else str(bound)
