"""Draw the chart: mean departure delays by hour, weather, airline, and by airport and month.

The law: it draws what the steps before handed in and computes nothing but the mean of one part. Figures
are built without pyplot, which keeps global state and looks for a screen.
"""

from __future__ import annotations

from io import BytesIO

from flights_delays import LATE, Group, Summary, add
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from trellis.workflows import Artifact, Context, action

INK, MUTED, GRID = "#22303c", "#6b7a88", "#e3e8ec"
LEAF, CLAY = "#2f7d5b", "#c8553d"
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": GRID,
    "axes.titlesize": 11.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": MUTED,
    "ytick.color": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
}


@action(name="flights.chart")
def chart(
    ctx: Context, hours: list[Group], carriers: list[Group], weather: list[Group], summaries: list[Summary]
) -> Artifact:
    """Four panels as one PNG: by hour, by carrier, by weather, by airport and month."""
    with rc_context(STYLE):
        figure = Figure(figsize=(13, 9), layout="constrained")
        axes = figure.subplots(2, 2, height_ratios=(1, 1.15))
        figure.get_layout_engine().set(w_pad=0.18, h_pad=0.18)
        _hours(axes[0][0], hours)
        _bars(axes[1][0], "By airline", [(group.group[3:], group) for group in carriers])
        _bars(axes[0][1], "By weather at departure", [(group.group, group) for group in weather])
        _months(axes[1][1], summaries)
        figure.suptitle(
            "Mean departure delay of flights from New York in 2013, in minutes",
            x=0.012,
            ha="left",
            fontsize=15,
            fontweight="bold",
        )
        figure.text(0.988, 0.972, f"late: {LATE} minutes or more", ha="right", va="center", color=MUTED)
        picture = BytesIO()
        figure.savefig(picture, format="png", dpi=120, facecolor="white")
    artifact = ctx.artifact("delays.png")
    artifact.write_bytes(picture.getvalue())
    return artifact


def _hours(axes: Axes, hours: list[Group]) -> None:
    flown = [group for group in hours if group.departure_delay is not None]
    places = [int(group.group[:2]) for group in flown]
    delays = [group.departure_delay for group in flown]
    axes.set_title("By scheduled hour of departure")
    axes.fill_between(places, delays, color=LEAF, alpha=0.14, linewidth=0)
    axes.plot(places, delays, color=LEAF, linewidth=2.2, marker="o", markersize=4)
    peak = max(range(len(flown)), key=lambda at: delays[at])
    axes.annotate(
        f"{delays[peak]:.1f}",
        (places[peak], delays[peak]),
        xytext=(0, 8),
        textcoords="offset points",
        ha="center",
        fontweight="bold",
    )
    axes.set_xticks(places[::2], [f"{place:02d}:00" for place in places[::2]])
    axes.set_ylim(0, max(delays) * 1.18)
    axes.grid(axis="y", color=GRID)
    axes.set_axisbelow(True)


def _bars(axes: Axes, title: str, rows: list[tuple[str, Group]]) -> None:
    flown = [(name, group) for name, group in rows if group.departure_delay is not None][::-1]
    delays = [group.departure_delay for _, group in flown]
    axes.set_title(title)
    bars = axes.barh(
        [name for name, _ in flown],
        delays,
        color=[CLAY if delay == max(delays) else LEAF for delay in delays],
        height=0.68,
    )
    axes.bar_label(
        bars,
        [f"{group.departure_delay:.1f}   {group.late_share:.0%} late" for _, group in flown],
        padding=5,
        color=MUTED,
        fontsize=8.5,
    )
    axes.set_xlim(min(0.0, *delays), max(delays) * 1.3)
    axes.axvline(0, color=MUTED, linewidth=0.8)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x", color=GRID)
    axes.set_axisbelow(True)


def _months(axes: Axes, summaries: list[Summary]) -> None:
    airports = sorted({summary.origin for summary in summaries})
    delays: list[list[float]] = [[float("nan")] * len(airports) for _ in MONTHS]
    for summary in summaries:
        whole = add(summary.tallies["airport"], summary.origin)
        if whole.departure_delay is not None:
            delays[summary.month - 1][airports.index(summary.origin)] = whole.departure_delay
    axes.set_title("By month and airport")
    image = axes.imshow(delays, aspect="auto", cmap="YlOrBr", vmin=0)
    middle = image.norm.vmax * 0.62
    for row, line in enumerate(delays):
        for column, delay in enumerate(line):
            color = "white" if delay > middle else INK
            axes.text(column, row, f"{delay:.1f}", ha="center", va="center", color=color, fontsize=9)
    axes.set_xticks(range(len(airports)), airports)
    axes.set_yticks(range(len(MONTHS)), MONTHS)
    axes.spines[:].set_visible(False)
    axes.tick_params(axis="x", colors=INK)
    axes.set_xticks([at + 0.5 for at in range(len(airports) - 1)], minor=True)
    axes.set_yticks([at + 0.5 for at in range(len(MONTHS) - 1)], minor=True)
    axes.grid(which="minor", color="white", linewidth=2)
    axes.tick_params(which="minor", size=0)
