"""A projector that begins by speaking the decoder's own words, solved in closed form before the first step.

The truth of a scene says which thing covers each position that a picture takes. There the projector is to say the
thing's name, by the decoder's embeddings of its tokens; where the middle of the thing lies also its looks and its
place, at half strength; elsewhere that there is nothing. A language model then reads a picture as words that it knows.

Both layers are found by ridge regression on what the frozen encoder makes of training scenes. The first rows of the
first layer become a unit for each word, which GELU opens where its linear score stands out; the others stay as they
were drawn. The last layer leads from the units to the embeddings.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from bifocal import distributed
from bifocal.config import UserError
from bifocal.data.pictures import to_tensor
from bifocal.data.scenes import SIZES, TILE_COLOURS, TILTS, Scene, World
from bifocal.data.text import TextTokenizer
from bifocal.models.vlm import VLM, ContinuousPath, together
from bifocal.recipes.mixture import MixtureSource
from bifocal.recipes.sources import SceneSource, Source
from bifocal.training.progress import Progress

FEWEST = 64  # scenes that can be solved from
HELD_OUT = 0.1  # of the scenes, on which the strength of the ridge is chosen
BATCH = 256  # pictures
COVERED = 0.25  # of a position, for the thing to be named there
BACKGROUND = "background"
COLUMNS, ROWS, MIDDLE = ("left", "", "right"), ("top", "", "bottom"), "middle"
LOOKS = 1.0  # how strongly looks and places are said, beside a name at 1
STRENGTHS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)  # of the ridge, in shares of the inputs' mean square
# A unit's score is 1 on average where its word is said; it opens above THRESHOLD, at a slope of SHARPNESS.
SHARPNESS, THRESHOLD = 1.2, 0.67


class Words:
    """What positions can say: names, that there is nothing, looks and places, with the decoder's embeddings of them.

    What words of one kind have in common (that they are nouns, or colours) says nothing of a picture and would lie
    over the rest: of looks and places only what sets them apart from their own kind is added to a name.
    """

    def __init__(self, world: World, tokenizer: TextTokenizer, table_VD: Tensor) -> None:
        self.names = [concept.name for concept in world.concepts]
        said, self.kinds = [*self.names, BACKGROUND], [slice(0, len(self.names))]
        self.background = len(self.names)
        self.look_at: dict[str, int] = {}
        for kind in (SIZES, TILTS, TILE_COLOURS, tuple(word for word in (*COLUMNS, *ROWS, MIDDLE) if word)):
            self.look_at |= {word: len(said) + place for place, word in enumerate(kind)}
            self.kinds.append(slice(len(said), len(said) + len(kind)))
            said += kind
        # as they stand inside a sentence
        ids = [tokenizer.encode(f" {word}") for word in said]
        table_VD = table_VD.detach().float().cpu()
        self.mean_D = table_VD.mean(dim=0)
        self.own_KD = torch.stack([table_VD[each].mean(dim=0) for each in ids]) - self.mean_D
        self.common_D = self.own_KD[self.kinds[0]].mean(dim=0)  # of names
        for run in self.kinds:
            self.own_KD[run] -= self.own_KD[run].mean(dim=0)
        self.name_at = {name: place for place, name in enumerate(self.names)}

    def __len__(self) -> int:
        return len(self.own_KD)

    def said(self, scene: Scene, side: int) -> Tensor:
        """(N, K) bool: which words each of side x side positions is to say, row by row."""
        said_NK = torch.zeros(side * side, len(self), dtype=torch.bool)
        owners = [-1] * (side * side)
        most = [0.0] * (side * side)
        for number, thing in enumerate(scene.objects):
            left, top, right, bottom = (side * edge for edge in thing.box)
            for row in range(int(top), min(side, math.ceil(bottom))):
                for column in range(int(left), min(side, math.ceil(right))):
                    place = row * side + column
                    share = (min(column + 1, right) - max(column, left)) * (
                        min(row + 1, bottom) - max(row, top)
                    )
                    if share >= COVERED and share > most[place]:
                        most[place], owners[place] = share, number
        for place, number in enumerate(owners):
            if number < 0:
                said_NK[place, self.background] = True
            else:
                said_NK[place, self.name_at[scene.objects[number].concept.name]] = True
        for number, thing in enumerate(scene.objects):
            x, y = thing.centre
            place = int(y * side) * side + int(x * side)
            if owners[place] != number:
                continue
            across, down = COLUMNS[int(x * 3)], ROWS[int(y * 3)]
            looks = [thing.size, thing.tile, across, down, "" if across or down else MIDDLE]
            looks += [thing.tilt] if thing.concept.can_tilt else []
            said_NK[place, [self.look_at[word] for word in looks if word]] = True
        return said_NK

    def embeddings(self, stretch: Mapping[int, float]) -> Tensor:
        """(K, D) what each word adds to the mean embedding; the kinds' own parts are so many times as long."""
        added_KD = self.own_KD.clone()
        for number, kind in enumerate(self.kinds):
            added_KD[kind] *= stretch[number] * (LOOKS if number else 1.0)
        added_KD[self.kinds[0]] += self.common_D
        return added_KD

    def named(self, vectors_ND: Tensor) -> Tensor:
        """(N,) int64: the name whose embedding lies in the direction nearest to each of the projector's outputs."""
        own_ND = vectors_ND - self.mean_D - self.common_D
        return (own_ND @ F.normalize(self.own_KD[self.kinds[0]], dim=1).T).argmax(dim=1)


@dataclass(frozen=True)
class Positions:
    """Positions of some pictures: what the projector is given, and which words it is to say."""

    inputs_ND: Tensor
    said_NK: Tensor  # bool


class Ridge:
    """Linear regression with an intercept and a penalty on all else, its sums in float64."""

    def __init__(self) -> None:
        self.gram: Tensor | float = 0.0
        self.cross: Tensor | float = 0.0

    def add(self, inputs_ND: Tensor, targets_NK: Tensor) -> None:
        """Count in some more of what is to be led to what."""
        inputs = F.pad(inputs_ND, (0, 1), value=1.0)
        self.gram = self.gram + (inputs.T @ inputs).double()
        self.cross = self.cross + (inputs.T @ targets_NK).double()

    def solved(self, strength: float) -> tuple[Tensor, Tensor]:
        """(K, D) weight and (K,) bias."""
        assert isinstance(self.gram, Tensor) and isinstance(self.cross, Tensor)
        penalty = strength * self.gram.diagonal()[:-1].mean().clamp_min(1e-12)
        ridge = self.gram + torch.diag(penalty * torch.ones(len(self.gram), dtype=torch.float64))
        ridge[-1, -1] = self.gram[-1, -1]
        whole = torch.linalg.solve(ridge, self.cross).float()
        return whole[:-1].T.contiguous(), whole[-1]


Part = Callable[[Positions], Tensor]


def regression(
    train: Sequence[Positions], held_out: Sequence[Positions], inputs: Part, targets: Part
) -> tuple[Tensor, Tensor, float]:
    """Weight, bias and strength of the ridge regression that errs least on the held-out positions."""
    ridge = Ridge()
    for some in train:
        ridge.add(inputs(some), targets(some))
    tried = []
    for strength in STRENGTHS:
        weight, bias = ridge.solved(strength)
        error = sum(
            (F.linear(inputs(some), weight, bias) - targets(some)).square().sum().item() for some in held_out
        )
        tried.append((error, strength, weight, bias))
    _, strength, weight, bias = min(tried, key=lambda each: each[:2])
    return weight, bias, strength


@torch.no_grad()
def solve(
    path: ContinuousPath, words: Words, train: Sequence[Positions], held_out: Sequence[Positions]
) -> float:
    """Put both layers of the projector in; returns the strength of the last one's ridge."""
    weight_KD, bias_K, _ = regression(
        train, held_out, lambda some: some.inputs_ND, lambda some: some.said_NK.float()
    )
    count_K = sum(some.said_NK.sum(dim=0) for some in train)
    assert isinstance(count_K, Tensor)
    score_K = torch.zeros(len(words))
    for some in train:
        score_K += (F.linear(some.inputs_ND, weight_KD, bias_K) * some.said_NK).sum(dim=0)
    score_K = (score_K / count_K.clamp_min(1)).clamp_min(1e-3)
    # a word that is never said needs no unit; where there are too few units, frequent words have them
    units = count_K.argsort(descending=True, stable=True)[
        : min(int((count_K > 0).sum()), path.linear_1.out_features)
    ]
    slope = SHARPNESS / score_K[units]
    path.linear_1.weight[: len(units)] = weight_KD[units] * slope[:, None]
    path.linear_1.bias[: len(units)] = bias_K[units] * slope - SHARPNESS * THRESHOLD
    first, first_bias = path.linear_1.weight.float().cpu(), path.linear_1.bias.float().cpu()

    def opened(some: Positions) -> Tensor:
        return F.gelu(F.linear(some.inputs_ND, first, first_bias))

    last_KH, last_K, strength = regression(train, held_out, opened, lambda some: some.said_NK.float())
    # what is uncertain comes out short, and the decoder is used to embeddings of full length
    stretch = {}
    for number, kind in enumerate(words.kinds):
        own = words.own_KD[kind]
        wanted = sum((some.said_NK[:, kind].float() @ own).square().sum().item() for some in held_out)
        found = sum(
            (F.linear(opened(some), last_KH[kind], last_K[kind]) @ own).square().sum().item()
            for some in held_out
        )
        stretch[number] = math.sqrt(wanted / max(found, 1e-12))
    added_KD = words.embeddings(stretch)
    path.linear_2.weight.copy_(added_KD.T @ last_KH)
    path.linear_2.bias.copy_(last_K @ added_KD + words.mean_D)
    return strength


def world_with_truth(source: Source) -> World | None:
    """The world of scenes that a source has, alone or among others; None where nothing says what stands where."""
    if isinstance(source, SceneSource):
        return source.world
    if isinstance(source, MixtureSource):
        return next((each.world for each in source.sources if isinstance(each, SceneSource)), None)
    return None


def require_truth(source: Source, init_from: str | None = None) -> World:
    """The world of scenes that a source has. Raises ``UserError`` where it has none, and for a run that goes on from
    another one, whose projector has learnt already.
    """
    if init_from is not None:
        raise UserError(
            f"--init-from {init_from} brings a projector that has learnt, and --name-start would put another one in "
            "its place: give one of them"
        )
    world = world_with_truth(source)
    if world is None:
        raise UserError(
            "--name-start lets the projector begin with the names of things, and nothing in these data says which "
            "thing stands where in a picture: only scenes do; leave it out (--name-start 0), or mix scenes in"
        )
    return world


def start_with_names(
    model: VLM,
    tokenizer: TextTokenizer,
    world: World,
    encode: Callable[[Tensor], Tensor],
    *,
    scenes: int,
    title: str,
) -> None:
    """Solve the projector of a continuous VLM from the first ``scenes`` training scenes, and say how well it names.

    ``encode`` is the frozen encoder's, (P, 3, H, W) in [0, 1] -> (P, patches, D) on the model's device.
    """
    path = model.image_path
    assert isinstance(path, ContinuousPath)

    def work(still_going: Callable[[], None]) -> str:
        words = Words(world, tokenizer, model.language_model.embed_tokens.weight)
        batches = list(positions_of(world, "train", words, path, encode, scenes, still_going))
        held_out = batches[-max(1, round(HELD_OUT * len(batches))) :]
        strength = solve(path, words, batches[: -len(held_out)], held_out)
        covered, right = named_rightly(path, words, held_out)
        return (
            f"{title}: the projector begins with the decoder's words, solved from {scenes * path.positions:,} "
            f"positions of {scenes:,} training scenes (ridge {strength:g}); of {covered:,} held-out positions that a "
            f"thing covers {right / max(covered, 1):.1%} have its name nearest"
        )

    said = distributed.first_rank_does(work)
    for weight in (*path.linear_1.parameters(), *path.linear_2.parameters()):
        weight.data.copy_(distributed.from_first_rank(weight.data))
    if distributed.is_main():
        print(said, flush=True)


@torch.no_grad()
def named_rightly(path: ContinuousPath, words: Words, positions: Sequence[Positions]) -> tuple[int, int]:
    """How many positions a thing covers, and how many of them the projector says the name of, or nearest to it."""
    covered = right = 0
    for some in positions:
        here = ~some.said_NK[:, words.background]
        vectors = path.linear_2(F.gelu(path.linear_1(some.inputs_ND[here].to(path.linear_1.weight))))
        names = some.said_NK[here, : words.background].int().argmax(dim=1)
        covered += len(names)
        right += int((words.named(vectors.float().cpu()) == names).sum())
    return covered, right


def positions_of(
    world: World,
    split: str,
    words: Words,
    path: ContinuousPath,
    encode: Callable[[Tensor], Tensor],
    count: int,
    still_going: Callable[[], None] = lambda: None,
) -> Iterator[Positions]:
    """The positions of the first ``count`` scenes of a split, in at least ten batches where there are as many."""
    side = math.isqrt(path.positions)
    size = min(BATCH, math.ceil(count / 10))
    with Progress("name positions", total=count) as progress:
        for start in range(0, count, size):
            scenes = [
                world.scenes(split, number, pictures=1)[0]
                for number in range(start, min(start + size, count))
            ]
            images = to_tensor([world.render(scene) for scene in scenes]).to(path.linear_1.weight.device)
            with torch.inference_mode():
                gathered = together(encode(images).float().cpu(), path.shuffle)
            yield Positions(
                gathered.flatten(0, 1).clone(), torch.cat([words.said(scene, side) for scene in scenes])
            )
            progress.update(min(start + size, count))
            still_going()
