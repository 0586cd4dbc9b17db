"""Line charts over logarithmic axes as one SVG, legible on light and dark pages; nothing but the standard library."""
import collections
import math
from xml.sax.saxutils import escape

# points: [(x, y)]; low and high, if any, are the ends of a bar at each point. dashed: a limit, drawn without marks.
Line = collections.namedtuple("Line", "label points colour dashed bars", defaults=(False, None))
# ticks_x: [(value, text)]
Chart = collections.namedtuple("Chart", "title label_x label_y ticks_x lines")

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 400, 330, 62, 14, 34, 50
LEGEND, FOOT = 18, 30
COLOURS = {  # light, dark
    "page": ("#ffffff", "#0d1117"),
    "ink": ("#1f2328", "#e6edf3"),
    "grid": ("#d8dee4", "#30363d"),
    "blue": ("#0550ae", "#79c0ff"),
    "red": ("#bc4c00", "#ffa657"),
    "green": ("#116329", "#7ee787"),
    "grey": ("#6e7781", "#8b949e"),
}


def style():
    """Colours follow the reader's preference; the page is painted, so that they never meet a foreign one."""
    def rules(i):
        return "".join(f".{name}{{fill:{c[i]}}}.{name}-line{{stroke:{c[i]}}}" for name, c in COLOURS.items())

    return ("<style>text{font:12px system-ui,'Segoe UI','DejaVu Sans',sans-serif}.small{font-size:11px}.title{font-weight:600;"
            f"font-size:13px}}path{{fill:none;stroke-width:1.8}}.grid-line{{stroke-width:1}}{rules(0)}"
            f"@media(prefers-color-scheme:dark){{{rules(1)}}}</style>")


def text(x, y, content, names="ink", anchor="start", more=""):
    return f'<text class="{names}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{more}>{escape(content)}</text>'


def path(points, names, more=""):
    steps = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    return f'<path class="{names}" d="M{steps}"{more}/>'


def decade_ticks(low, high):
    """1, 2 and 5 times the powers of ten within, and the next beyond each end."""
    all_ticks = [m * 10.0**e for e in range(-6, 7) for m in (1, 2, 5)]
    first = max(t for t in all_ticks if t <= low)
    last = min(t for t in all_ticks if t >= high)
    return [t for t in all_ticks if first <= t <= last]


class Frame:
    """Where values are on the page."""

    def __init__(self, chart, left):
        xs = [x for line in chart.lines for x, _ in line.points]
        ys = [y for line in chart.lines for _, y in line.points]
        ys += [y for line in chart.lines for bar in line.bars or [] for y in bar]
        self.ticks_y = decade_ticks(min(ys), max(ys))
        self.low, self.high = (self.ticks_y[0], self.ticks_y[-1])
        self.first, self.last = min(xs), max(xs)
        self.left, self.right = left + LEFT, left + WIDTH - RIGHT
        self.top, self.bottom = TOP, HEIGHT - BOTTOM

    def x(self, value):
        share = math.log(value / self.first) / math.log(self.last / self.first)
        return self.left + 8 + share * (self.right - self.left - 16)

    def y(self, value):
        return self.bottom - math.log(value / self.low) / math.log(self.high / self.low) * (self.bottom - self.top)


def axes(chart, frame):
    middle = (frame.left + frame.right) / 2
    out = [text(frame.left, TOP - 14, chart.title, "ink title"),
           text(middle, frame.bottom + 34, chart.label_x, "ink", "middle")]
    turned = f' transform="rotate(-90 {frame.left - 46} {(frame.top + frame.bottom) / 2:.1f})"'
    out.append(text(frame.left - 46, (frame.top + frame.bottom) / 2, chart.label_y, "ink", "middle", turned))
    for value in frame.ticks_y:
        y = frame.y(value)
        out += [path([(frame.left, y), (frame.right, y)], "grid-line"),
                text(frame.left - 6, y + 4, f"{value:g}", "ink small", "end")]
    for value, name in chart.ticks_x:
        x = frame.x(value)
        out += [path([(x, frame.bottom), (x, frame.bottom + 4)], "ink-line", ' stroke-width="1"'),
                text(x, frame.bottom + 17, name, "ink small", "middle")]
    return out


def draw_line(line, frame):
    points = [(frame.x(x), frame.y(y)) for x, y in line.points]
    out = [path(points, f"{line.colour}-line", ' stroke-dasharray="5 4"' if line.dashed else "")]
    for (x, _), (low, high) in zip(points, line.bars or []):
        out.append(path([(x, frame.y(low)), (x, frame.y(high))], f"{line.colour}-line", ' stroke-opacity="0.5"'))
    if not line.dashed:
        out += [f'<circle class="{line.colour}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in points]
    return out


def legend(chart, frame):
    out = []
    for i, line in enumerate(chart.lines):
        y = HEIGHT + 4 + i * LEGEND
        dash = ' stroke-dasharray="5 4"' if line.dashed else ""
        out += [path([(frame.left, y), (frame.left + 26, y)], f"{line.colour}-line", dash),
                text(frame.left + 34, y + 4, line.label, "ink small")]
        if not line.dashed:
            out.append(f'<circle class="{line.colour}" cx="{frame.left + 13}" cy="{y}" r="3"/>')
    return out


def draw(charts, foot):
    """The charts side by side, their legends below them, and a line of text."""
    width = WIDTH * len(charts)
    height = HEIGHT + max(len(c.lines) for c in charts) * LEGEND + FOOT
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">',
           style(), f'<rect class="page" width="{width}" height="{height}"/>']
    for i, chart in enumerate(charts):
        frame = Frame(chart, i * WIDTH)
        out += axes(chart, frame)
        for line in chart.lines:
            out += draw_line(line, frame)
        out += legend(chart, frame)
    out += [text(LEFT, height - 12, foot, "ink small"), "</svg>"]
    return "\n".join(out) + "\n"
