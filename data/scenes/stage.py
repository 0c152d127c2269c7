"""The stage of a procedural scene: its surroundings, and the stands of grass and flowers that several kinds share."""

from __future__ import annotations

import math

import numpy as np

from data.scenes import backgrounds, plants, rigid
from data.scenes.backgrounds import still_quad
from data.scenes.elements import add_leaves, add_strips
from data.scenes.flowers import FLOWERS, flower_heads
from data.scenes.mesh import BRICK, MOTTLED, PLANKS, STONE, Carrier, Mesh, along, bend, still
from data.scenes.plants import AUTUMN, GREENS, PETALS, STRAW, pick, vary

MOODS = ("day", "day", "day", "overcast", "overcast", "sunset", "dusk", "white")


class Stage:
    """What the pieces of one scene share: random numbers, size, mesh, background, horizon and finish."""

    def __init__(self, rng: np.random.Generator, size: tuple[int, int], atlas: np.ndarray) -> None:
        self.rng, self.size, self.atlas = rng, size, atlas
        self.height, self.width = size
        self.scale = math.sqrt(size[0] * size[1] / (160 * 256))
        self.mesh = Mesh()
        self.background = np.zeros((*size, 3), np.float32)
        self.horizon = self.height * 0.6
        self.changes: dict[str, object] = {}
        self.mood = str(rng.choice(MOODS))

    def far_blur(self, sigma: float) -> None:
        """Put layer 0 out of focus by sigma px (at 256 x 160)."""
        self.changes["blurs"] = (sigma * self.scale, 0.0, 0.0)

    def near_blur(self, sigma: float) -> None:
        """Put layer 2 out of focus, keeping layer 0's blur."""
        blurs = self.changes.get("blurs", (0.0, 0.0, 0.0))
        self.changes["blurs"] = (blurs[0], 0.0, sigma * self.scale)  # type: ignore[index]

    def chance(self, share: float) -> bool:
        """True in `share` of the scenes."""
        return bool(self.rng.random() < share)

    def landscape(self, horizon: float | None = None, floor: str | None = None) -> None:
        """Sky, perhaps hills or a wood, and ground."""
        rng = self.rng
        self.horizon = self.height * (rng.uniform(0.35, 0.8) if horizon is None else horizon)
        self.background = backgrounds.sky(rng, self.size, self.mood)
        tint = pick(rng, GREENS) * (0.35 if self.mood in ("sunset", "dusk") else 0.8)
        if self.chance(0.7):
            backgrounds.hills(rng, self.background, self.horizon, tint, int(rng.integers(1, 4)))
        floor = floor or str(rng.choice(["grass", "grass", "grass", "earth", "road", "water", "sand"]))
        colour = {
            "grass": pick(rng, GREENS if self.chance(0.75) else STRAW),
            "earth": np.array([0.42, 0.32, 0.22]),
            "road": np.array([0.45, 0.44, 0.44]),
            "sand": np.array([0.78, 0.68, 0.5]),
            "water": np.array([0.2, 0.34, 0.4]),
        }[floor]
        colour = colour * (0.5 if self.mood in ("sunset", "dusk") else 1.0)
        backgrounds.ground(rng, self.background, self.horizon, colour, floor)

    def soft(self) -> None:
        """A background out of focus: foliage, a wood, a wall, the sky or plain paper."""
        rng = self.rng
        choice = rng.choice(
            ["bokeh", "forest", "wall", "sky", "plain", "landscape"], p=[0.42, 0.14, 0.12, 0.16, 0.06, 0.1]
        )
        if choice == "bokeh":
            colour = pick(rng, GREENS + AUTUMN + STRAW if self.chance(0.3) else GREENS, 0.08) * rng.uniform(0.25, 1.3)
            self.background = backgrounds.bokeh(rng, self.size, colour, self.scale).astype(np.float32)
        elif choice == "forest":
            self.background = backgrounds.forest(rng, self.size, pick(rng, GREENS) * 0.6, self.scale)
        elif choice == "wall":
            self.wall()
        elif choice == "sky":
            self.background = backgrounds.sky(rng, self.size, self.mood)
        elif choice == "plain":
            tone = rng.choice([0.95, 0.06, 0.5]) * np.ones(3) * (1 + rng.normal(0, 0.05, 3))
            self.background = backgrounds.surface(rng, self.size, tone, self.atlas[MOTTLED], self.scale)
        else:
            self.landscape()
        if choice in ("bokeh", "forest") and self.chance(0.85):
            self.backdrop()

    def backdrop(self) -> None:
        """Let leaves far out of focus sway in layer 0, in the colours of what is painted behind them."""
        rng, leaf = self.rng, self.scale * self.rng.uniform(9, 26)
        count = int(np.clip(0.55 * self.height * self.width / leaf**2, 15, 220) * rng.uniform(0.5, 1.3))
        spot = rng.uniform(-0.1, 1.1, (count, 2)) * [self.width, self.height]
        y, x = np.clip(spot[:, ::-1].astype(int), 0, [self.height - 1, self.width - 1]).T
        colour = np.clip(vary(rng, self.background[y, x], count, 0.3, 0.06), 0.01, 1)
        # Leaves of one bough are near one another: the gusts' own correlation keeps them together.
        sway = self.mesh.add_freedoms(spot, hertz=rng.uniform(0.5, 1.1), gain=0.3 * leaf, scatter=0.25, limit=99.0)
        lean = np.stack([np.ones(count), rng.uniform(-0.4, 0.4, count)], -1)[:, None]
        size = leaf * np.exp(rng.normal(0, 0.3, count))
        add_leaves(
            self.mesh,
            still(count).with_freedoms(sway[:, None], lean, np.zeros((count, 1))),
            spot,
            rng.uniform(0, 2 * math.pi, count),
            size * 1.6,
            size * rng.uniform(0.4, 0.9, count),
            colour,
            depth=rng.uniform(-9, -8, count),
            shape=str(rng.choice(["oval", "round", "lance"])),
            layer=0,
        )
        self.far_blur(rng.uniform(2, 5))

    def wall(self) -> None:
        """A wall face on."""
        material = int(self.rng.choice([BRICK, PLANKS, MOTTLED, STONE]))
        colour = pick(self.rng, rigid.WALLS)
        self.background = backgrounds.surface(self.rng, self.size, colour, self.atlas[material], self.scale)

    def room(self) -> float:
        """A wall, furniture and a table or floor; returns the row of the table's edge."""
        self.wall()
        edge = self.height * self.rng.uniform(0.68, 0.9)
        if self.chance(0.7):
            rigid.furniture(self.mesh, self.rng, self.size, edge, self.scale)
        colour = pick(self.rng, ((0.5, 0.33, 0.2), (0.85, 0.84, 0.82), (0.3, 0.2, 0.14), (0.6, 0.52, 0.42)))
        still_quad(
            self.mesh,
            -2,
            edge,
            self.width + 4,
            self.height - edge + 4,
            colour,
            -1.5,
            material=PLANKS,
            strength=0.25,
            gradient=(1.1, 0.75),
            texel=1.5 / self.scale,
        )
        return edge

    def distract(self, share: float = 0.6, *, front: bool = True) -> None:
        """Perhaps add still things behind, beside and partly before what moves."""
        rng, foot = self.rng, min(self.horizon + 0.08 * self.height, self.height)
        if not self.chance(share):
            return
        choice = str(rng.choice(["house", "house", "fence", "stones", "bench", "trunk", "pole"]))
        depth = float(rng.choice([-3.0, 6.0])) if front else -3.0
        if choice == "house":
            w = self.width * rng.uniform(0.15, 0.5)
            rigid.house(self.mesh, rng, rng.uniform(-0.1, 0.85) * self.width, foot, w, w * rng.uniform(0.45, 1.1), -3.5)
        elif choice == "fence":
            near = depth > 0
            rigid.fence(
                self.mesh,
                rng,
                self.height * 1.02 if near else foot,
                self.height * rng.uniform(0.12, 0.28),
                self.width,
                depth,
            )
        elif choice == "stones":
            rigid.boulders(
                self.mesh, rng, self.size, self.horizon + 0.1 * self.height, 2.0, int(rng.integers(2, 12)), self.scale
            )
        elif choice == "bench":
            rigid.bench(
                self.mesh,
                rng,
                rng.uniform(0, 0.7) * self.width,
                foot + 0.1 * self.height,
                self.width * rng.uniform(0.15, 0.3),
                depth,
            )
        elif choice == "trunk":
            rigid.trunk(
                self.mesh,
                rng,
                rng.uniform(0, 1) * self.width,
                self.height * 1.05,
                -9,
                self.scale * rng.uniform(5, 26),
                depth,
            )
        else:
            rigid.pole(
                self.mesh,
                rng,
                rng.uniform(0, 1) * self.width,
                foot + 5,
                self.height,
                self.scale * rng.uniform(2, 6),
                depth,
            )

    def lawn(self, share: float = 0.5) -> None:
        """Perhaps let short grass grow in front."""
        if self.chance(share):
            meadow_blades(self, int(self.rng.integers(250, 900)), self.rng.uniform(0.05, 0.16))


def meadow_blades(
    stage: Stage,
    count: int,
    tall: float,
    colour: np.ndarray | None = None,
    *,
    top: float | None = None,
    lean: float = 0.0,
    gain: float = 0.25,
    layer: int = 1,
) -> tuple[np.ndarray, Carrier, np.ndarray]:
    """Blades in perspective below the horizon, near ones larger: lines, carriers and nearness (N,) in 0..1."""
    rng = stage.rng
    top = stage.horizon if top is None else top
    near = np.sort(rng.uniform(0, 1, count) ** 0.75)
    base = np.stack([rng.uniform(-0.05, 1.05, count) * stage.width, top + near * (stage.height * 1.12 - top)], -1)
    height = stage.height * tall * (0.3 + 0.9 * near) * np.exp(rng.normal(0, 0.25, count))
    tint = pick(rng, GREENS if rng.random() < 0.75 else STRAW) if colour is None else colour
    colours = vary(rng, tint * (0.72 if stage.mood in ("dusk", "sunset") else 1.0), count, 0.22, 0.08) * (
        0.75 + 0.35 * near[:, None]
    )
    line, carried = plants.grass(
        stage.mesh,
        rng,
        base,
        height,
        np.clip(colours, 0, 1),
        half_width=np.maximum(rng.uniform(0.009, 0.02) * height, 0.4 * stage.scale),
        lean=lean,
        depth=near * 4,
        gain=gain,
        hertz=rng.uniform(0.8, 1.8),
        layer=layer,
    )
    return line, carried, near


def chain_carriers(carried: Carrier, items: np.ndarray, points: int) -> Carrier:
    """Carriers of all points of the chains `items`."""
    return carried.take((items[:, None] * points + np.arange(points)).reshape(-1))


def heads_on(stage: Stage, line: np.ndarray, carried: Carrier, near: np.ndarray, radius: float) -> None:
    """Flowers of one or two sorts at the tips of stems."""
    rng = stage.rng
    if len(line) == 0:
        return
    for part in np.array_split(rng.permutation(len(line)), int(rng.integers(1, 3))):
        if len(part) == 0:
            continue
        end, heading, carrier = plants.tips(line[part], chain_carriers(carried, part, line.shape[1]))
        style = str(rng.choice(FLOWERS, p=[0.3, 0.16, 0.08, 0.1, 0.08, 0.1, 0.1, 0.08]))
        size = np.maximum(radius * (0.35 + 0.9 * near[part]) * np.exp(rng.normal(0, 0.15, len(part))), 1.0)
        flower_heads(
            stage.mesh,
            rng,
            carrier,
            end,
            size,
            heading,
            style=style,
            colour=pick(rng, PETALS),
            heart=pick(rng, ((0.9, 0.7, 0.1), (0.35, 0.2, 0.08), (0.95, 0.85, 0.3))),
            depth=near[part] * 4 + 0.1,
        )


def stems_with_heads(
    stage: Stage,
    foot: np.ndarray,
    head: np.ndarray,
    radius: float,
    style: str,
    colour: np.ndarray,
    heart: np.ndarray,
    green: np.ndarray,
    layer: int,
) -> None:
    """A flower on a stem from each foot (N, 2) to its head (N, 2), with leaves on some."""
    rng, count = stage.rng, len(foot)
    if count == 0:
        return
    reach, depth = head - foot, rng.uniform(0, 1, count)
    bow = rng.normal(0, 0.25, count)
    line = along(foot, np.arctan2(reach[:, 1], reach[:, 0]) - bow / 2, np.linalg.norm(reach, axis=1), bow, 7)
    carried = bend(stage.mesh, still(count), line, hertz=rng.uniform(0.6, 1.4), gain=0.2, scatter=0.25)
    add_strips(
        stage.mesh,
        carried,
        line,
        np.full((count, 7), max(radius * rng.uniform(0.04, 0.09), 0.5)),
        vary(rng, green, count, 0.1),
        depth=depth - 0.2,
        layer=layer,
    )
    end, heading, carrier = plants.tips(line, carried)
    flower_heads(
        stage.mesh,
        rng,
        carrier,
        end,
        radius * np.exp(rng.normal(0, 0.12, count)),
        heading,
        style=style,
        colour=colour,
        heart=heart,
        depth=depth + 0.1,
        layer=layer,
    )
    which = np.repeat(np.arange(count), int(rng.integers(0, 6)))
    if len(which):
        at, green = rng.integers(1, 6, len(which)), vary(rng, green, len(which), 0.2)
        angle = heading[which] + rng.choice([-1, 1], len(which)) * rng.uniform(0.4, 1.3, len(which))
        size = radius * rng.uniform(0.5, 1.2, len(which))
        add_leaves(
            stage.mesh,
            carried.take(which * 7 + at),
            line[which, at],
            angle,
            size,
            size * rng.uniform(0.2, 0.5),
            green,
            depth=depth[which] + rng.uniform(-0.3, 0.05, len(which)),
            shape="lance",
            bow=rng.normal(0, 0.25, len(which)),
            layer=layer,
        )
