"""The nearest code of each vector: a product in low precision proposes, exact distances decide.

|z - e|^2 = |z|^2 - 2 z.e + |e|^2, so one matrix product ranks all codes. It is taken in bf16 where the processor
multiplies that format (float32 elsewhere), and rounds. But how much it may have rounded is known: with x = z - c and
y = e - c for any c, and x', y' what the product sees of them, Cauchy and Schwarz give

    |x.y - x'.y'| <= |x - x'| |y| + |x'| |y - y'|,

which depends on the vector and on the code only through norms that are cheap to measure. Taken off within the same
product it makes every entry a lower bound of half a squared distance (up to what is the same for all codes). The
least of them names a first code, whose true distance is computed; a code whose lower bound lies above that cannot be
nearer. The few others are compared by distances in float32, and those too close for float32 in float64. So the code
returned is that of the least distance in float64, of equal ones the lowest, in whatever precision, pieces or number of
threads it was found. Where too many codes remain (there are copies, or codes that lie close together), the vectors go
through a product in float32 with the distinct codes, and if need be through all distances in float64.
"""

from __future__ import annotations

import math
import threading

import torch
import torch.nn.functional as F
from torch import Tensor

from bifocal.models.precision import fast_dtype, float32_is_rounded

# of a piece of the product: the caches of a CPU are small, and on a GPU every launch costs
SCORE_BYTES = {"cpu": 8 * 2**20, "other": 256 * 2**20}
MANY = 16  # codes to compare one by one, as a mean over the vectors that have any
HUGE = 1e18  # longer vectors could overflow in the product
# more than a sum and a norm lose where float32 underflows, for D < 2**16
TINY, TINY_NORM = 2.0**-100, 2.0**-66

_kept = threading.local()


def nearest_code(vectors_ND: Tensor, codebook_KD: Tensor) -> Tensor:
    """Index (N,) int64 of the code nearest to each vector: argmin_k |z - e_k|^2 (lecture slide "Codebook").

    The distances of the float32 values are compared as in float64, whatever the autocast; of equally near codes the
    lowest index wins. A vector that is not finite gets code 0, and a code that is not finite is never the nearest.
    Beside the results this takes a few times ``SCORE_BYTES``, and half a copy of the codebook.
    """
    return nearest(vectors_ND, codebook_KD)[0]


@torch.compiler.disable
@torch.no_grad()
def nearest(vectors_ND: Tensor, codebook_KD: Tensor) -> tuple[Tensor, Tensor]:
    """``nearest_code``, and the squared distance (N,) float32 to that code, NaN where the vector is not finite."""
    with torch.autocast(vectors_ND.device.type, enabled=False):
        vectors_ND = vectors_ND.float()
        codes_N = torch.zeros(len(vectors_ND), dtype=torch.int64, device=vectors_ND.device)
        squared_N = torch.empty(len(vectors_ND), device=vectors_ND.device)
        if len(vectors_ND) > 0:
            Ladder(codebook_KD.float()).settle(vectors_ND, codes_N, squared_N)
        return codes_N, squared_N


class Ladder:
    """The looks at one codebook, from quick to exact; each is prepared when there is a vector that needs it."""

    def __init__(self, codebook_KD: Tensor) -> None:
        self.codebook = codebook_KD
        self.looks = [Look(codebook_KD, product_dtype(codebook_KD.device), "first")]

    def settle(self, vectors_RD: Tensor, codes_R: Tensor, squared_R: Tensor, level: int = 0) -> None:
        """Write the codes and the squared distances of these vectors."""
        if level == 2:
            self._compare_all(vectors_RD, codes_R, squared_R)
            return
        if level == len(self.looks):
            self.distinct = distinct_rows(self.codebook)
            self.looks.append(Look(self.codebook[self.distinct], torch.float32, "second"))
        look = self.looks[level]
        for begin in range(0, len(vectors_RD), look.rows):
            piece = slice(begin, begin + look.rows)
            found_R, distances_R, hard = look.search(vectors_RD[piece])
            codes_R[piece] = self.distinct[found_R] if level == 1 else found_R
            squared_R[piece] = distances_R
            if len(hard) > 0:
                hard = hard + begin
                codes, squared = codes_R[hard], squared_R[hard]
                self.settle(vectors_RD[hard], codes, squared, level + 1)
                codes_R[hard], squared_R[hard] = codes, squared

    def _compare_all(self, vectors_RD: Tensor, codes_R: Tensor, squared_R: Tensor) -> None:
        """All distances in float64: for vectors to which most codes are as near as float32 can tell."""
        codes_R.zero_()
        squared_R.fill_(math.nan)
        codebook_KD = self.codebook[self.distinct].double()
        rows = max(1, score_bytes(vectors_RD.device) // (8 * len(codebook_KD)))
        for part in vectors_RD.isfinite().all(dim=1).nonzero().squeeze(1).split(rows):
            distances = torch.cdist(
                vectors_RD[part].double(), codebook_KD, compute_mode="donot_use_mm_for_euclid_dist"
            )
            least, found = distances.min(dim=1)
            codes_R[part], squared_R[part] = self.distinct[found], least.square().float()


class Look:
    """A codebook, centred and laid out for a product in some precision.

    An entry of the product is (x', a, o, 1, 1) . (-y', -|y|, 1, b1, b2), where a |y| bounds what was rounded, b1 + b2
    is |y|^2 / 2, and o makes the whole about half a squared distance, never negative but by rounding: the bits of such
    numbers order as integers do, and the least of integers is found several times faster. Code k belongs to class k
    modulo the number of classes, so that the least of each class is taken along whole rows.
    """

    def __init__(self, codebook_KD: Tensor, dtype: torch.dtype, name: str) -> None:
        number, width = codebook_KD.shape
        device = codebook_KD.device
        self.codebook, self.dtype, self.name = codebook_KD, dtype, name
        self.classes = max(64, 2 ** math.ceil(math.log2(number) / 2))
        self.members = -(-number // self.classes)
        columns = self.members * self.classes
        self.rows = max(1, score_bytes(device) // max(dtype.itemsize * columns, 8 * width))
        # four times what the additions of a product, and twice what those of a squared distance may round in float32
        self.sum_error, self.pair_error = (width + 16) * 2.0**-22, (width + 8) * 2.0**-23
        rounded = dtype == torch.bfloat16 or float32_is_rounded(device)
        self.half_error = 2.0**-15 if rounded else self.sum_error  # of b1 + b2
        # the low bits of a score give way to its place
        self.place = 2**16 - 1 if dtype == torch.bfloat16 else 2 ** (self.classes - 1).bit_length() - 1

        self.centre_D = codebook_KD.mean(dim=0)
        self.table = self._scratch("table", (columns, width + 4), dtype)
        lengths, residuals = [], []
        for begin in range(0, number, self.rows):
            part = codebook_KD[begin : begin + self.rows]
            y = torch.sub(part, self.centre_D, out=self._scratch("centred", part.shape))
            lengths.append(torch.linalg.vector_norm(y, dim=1))
            seen = self.table[begin : begin + len(part), :width].copy_(y).neg_()
            residuals.append(torch.linalg.vector_norm(y.add_(seen), dim=1))
        self.length_K = torch.cat(lengths).add_(TINY_NORM)
        ratio_K = torch.cat(residuals).div_(self.length_K)
        self.longest, ratio = torch.stack([self.length_K.max(), ratio_K.max()]).tolist()
        if rounded and dtype == torch.float32:
            ratio += 2 * 2.0**-8  # unseen, of either side
        self.ratio = ratio + 4 * self.sum_error
        half_K = self.length_K.square().mul_(0.5 - self.sum_error - self.half_error)
        self.table[number:] = 0
        self.table[number:, width + 2] = 1e38  # no code, so farther than any
        self.table[:number, width] = self.length_K * -(1 + 2**-6)
        self.table[:, width + 1] = 1
        self.table[:number, width + 2] = half_K.bfloat16()
        self.table[:number, width + 3] = half_K - self.table[:number, width + 2]

    def _scratch(self, use: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        return scratch(f"{self.name} {use}", shape, dtype, self.codebook.device)

    def search(self, vectors_RD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Codes and squared distances (R,) of up to ``rows`` vectors, and for which of them this look is too coarse."""
        scores_RS, norms_R, slack_R, offset_R = self._product(vectors_RD)
        scores_RJC = bits(scores_RS).view(-1, self.members, self.classes)
        least_RC = scores_RJC.amin(dim=1)
        class_R, _, other_R = self._two_least(least_RC)
        every_R = torch.arange(len(vectors_RD), device=vectors_RD.device)
        member_R, first_R, same_class_R = self._two_least(scores_RJC[every_R, :, class_R])
        codes_R = member_R.mul_(self.classes).add_(class_R).clamp_(max=len(self.codebook) - 1)
        squared_R = self._squared(vectors_RD, None, codes_R)

        if self.dtype == torch.bfloat16:
            # half the true distance to the first code, in the terms of the scores
            limit_R = squared_R * (0.5 + self.sum_error)
            limit_R.sub_(norms_R.square(), alpha=0.5 - self.sum_error).add_(offset_R)
        else:
            # its score and what may be wrong with it, which stays sharp where a vector is far from all codes
            score_R = (first_R & ~self.place).view(torch.float32)
            length_R = self.length_K.index_select(0, codes_R)
            limit_R = score_R + (self.place + 1) * 2.0**-23 * score_R.abs() + 2.1 * slack_R * length_R
            limit_R += 2 * (self.sum_error + self.half_error) * length_R.square()
        limit_R.add_(offset_R, alpha=self.sum_error).add_(TINY * (1 + self.longest)).clamp_(min=0)
        limit_R = limit_R.to(self.dtype)
        open_R = torch.minimum(other_R, same_class_R) <= (bits(limit_R.float()) | self.place)
        hard_R = ~(norms_R < (HUGE if self.longest < HUGE else 0))
        rows = (open_R & ~hard_R).nonzero().squeeze(1)
        if len(rows) > 0:
            row, code = self._candidates(rows, scores_RJC, least_RC[rows], bits(limit_R[rows]), hard_R)
            if len(row) > 0:
                squared_R = self._decide(vectors_RD, row, code, codes_R, squared_R)
        return codes_R, squared_R, hard_R.nonzero().squeeze(1)

    def _product(self, vectors_RD: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The scores (R, S) of all codes and of what fills the last class; |x|, a and o (R,)."""
        number, width = vectors_RD.shape
        left = self._scratch("left", (number, width + 4), self.dtype)
        x = torch.sub(vectors_RD, self.centre_D, out=self._scratch("centred", (number, width)))
        norms_R = torch.linalg.vector_norm(x, dim=1)
        left[:, :width] = x
        slack_R = torch.linalg.vector_norm(x.sub_(left[:, :width]), dim=1)
        slack_R.add_(norms_R, alpha=self.ratio).mul_(1 + 2**-6).add_(TINY_NORM)
        shorter_R = norms_R.clamp(max=self.longest)
        offset_R = (norms_R - shorter_R / 2).mul_(shorter_R).mul_(1 + 2**-7).to(self.dtype)
        left[:, width] = slack_R
        left[:, width + 1] = offset_R
        left[:, width + 2 :] = 1
        scores_RS = self._scratch("scores", (number, len(self.table)), self.dtype)
        torch.mm(left, self.table.T, out=scores_RS)
        return scores_RS, norms_R, slack_R, offset_R.float()

    def _two_least(self, scores_RC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Where the least of each row stands, it, and the second; both with their places for low bits."""
        places_C = torch.arange(scores_RC.shape[1], dtype=torch.int32, device=scores_RC.device)
        wide_RC = self._scratch(f"wide {len(places_C)}", tuple(scores_RC.shape), torch.int32)
        if scores_RC.dtype == torch.int16:
            torch.add(places_C, scores_RC, alpha=2**16, out=wide_RC)
        else:
            torch.bitwise_and(scores_RC, ~self.place, out=wide_RC).bitwise_or_(places_C)
        first_R = wide_RC.amin(dim=1)
        place_R = (first_R & self.place).long()
        wide_RC.scatter_(1, place_R[:, None], torch.iinfo(torch.int32).max)
        return place_R, first_R, wide_RC.amin(dim=1)

    def _candidates(
        self, rows: Tensor, scores_RJC: Tensor, least_FC: Tensor, limit_F: Tensor, hard_R: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Pairs (row, code) of which the code may be the nearest; where they are too many, rows are marked as hard."""
        at, of_class = (least_FC <= limit_F[:, None]).nonzero().unbind(1)
        if len(at) > MANY * len(rows):
            at, of_class = few_each(at, of_class, rows, hard_R)
        which, member = (scores_RJC[rows[at], :, of_class] <= limit_F[at, None]).nonzero().unbind(1)
        at, code = at[which], of_class[which].add_(member, alpha=self.classes)
        if len(at) > MANY * len(rows):
            at, code = few_each(at, code, rows, hard_R)
        return rows[at], code

    def _decide(
        self, vectors_RD: Tensor, row: Tensor, code: Tensor, codes_R: Tensor, squared_R: Tensor
    ) -> Tensor:
        """Put the nearest of the first codes and of these pairs into ``codes_R``, and return the squared distances."""
        others = (code != codes_R[row]).nonzero().squeeze(1)
        row, code = row[others], code[others]
        squared = self._squared(vectors_RD, row, code)
        best_R = squared_R.scatter_reduce(0, row, squared, "amin")
        limit_R = best_R * (1 + 3 * self.pair_error) + TINY
        close = (squared <= limit_R[row]).nonzero().squeeze(1)
        row, code = row[close], code[close]
        first_R = squared_R <= limit_R
        tied_R = torch.bincount(row, minlength=len(codes_R)) + first_R > 1  # as far as float32 can tell
        tied, firsts = tied_R[row].nonzero().squeeze(1), (tied_R & first_R).nonzero().squeeze(1)
        tied_row, tied_code = torch.cat([row[tied], firsts]), torch.cat([code[tied], codes_R[firsts]])
        codes_R[row] = code
        if len(tied_row) > 0:
            exact = torch.cat(
                [
                    (self.codebook[some].double() - vectors_RD[of].double()).square().sum(dim=1)
                    for some, of in zip(tied_code.split(self.rows), tied_row.split(self.rows), strict=True)
                ]
            )
            least_R = torch.full_like(best_R, math.inf, dtype=torch.float64)
            least = exact == least_R.scatter_reduce_(0, tied_row, exact, "amin")[tied_row]
            codes_R.scatter_reduce_(0, tied_row[least], tied_code[least], "amin", include_self=False)
        return best_R

    def _squared(self, vectors_RD: Tensor, row: Tensor | None, code: Tensor) -> Tensor:
        """|z - e|^2 (P,) of pairs, or of each vector and its code."""
        parts = []
        for begin in range(0, len(code), self.rows):
            some = code[begin : begin + self.rows]
            shape = (len(some), vectors_RD.shape[1])
            near = torch.index_select(self.codebook, 0, some, out=self._scratch("near", shape))
            of = vectors_RD
            if row is not None:
                rows = row[begin : begin + self.rows]
                of = torch.index_select(vectors_RD, 0, rows, out=self._scratch("centred", shape))
            parts.append(torch.linalg.vector_norm(near.sub_(of), dim=1).square_())
        return torch.cat(parts) if parts else vectors_RD.new_empty(0)


def few_each(at: Tensor, what: Tensor, rows: Tensor, hard_R: Tensor) -> tuple[Tensor, Tensor]:
    """What stands at rows with at most ``MANY`` entries; the other rows are marked as hard."""
    many = torch.bincount(at, minlength=len(rows)) > MANY
    hard_R[rows[many]] = True
    few = ~many[at]
    return at[few], what[few]


def bits(values: Tensor) -> Tensor:
    """The same memory as integers."""
    return values.view(torch.int16 if values.dtype == torch.bfloat16 else torch.int32)


def distinct_rows(table_KD: Tensor) -> Tensor:
    """Indices, ascending, of the rows that are finite and equal to no row before them; [0] if there is none.

    Equal rows have equal keys; that unequal ones may have, too, costs nothing but finding fewer copies.
    """
    finite = table_KD.isfinite().all(dim=1).nonzero().squeeze(1)
    if len(finite) == 0:
        return torch.zeros(1, dtype=torch.int64, device=table_KD.device)
    weights_D = torch.arange(1, table_KD.shape[1] + 1, dtype=torch.float64, device=table_KD.device).sqrt()
    keys, order = (table_KD[finite].double() * weights_D).sum(dim=1).sort(stable=True)
    rows = table_KD[finite[order]]
    copies = F.pad((keys[1:] == keys[:-1]) & (rows[1:] == rows[:-1]).all(dim=1), (1, 0), value=False)
    return finite[order[~copies].sort().values]


def product_dtype(device: torch.device) -> torch.dtype:
    """bf16 on a CPU that is fast at it, else float32: what a GPU may round in sums of bf16 products is not bounded."""
    return fast_dtype(device) if device.type == "cpu" else torch.float32


def score_bytes(device: torch.device) -> int:
    """The size of a piece of the product."""
    return SCORE_BYTES["cpu" if device.type == "cpu" else "other"]


def scratch(use: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Memory with anything in it, which a thread keeps on a CPU: a new page costs more there than what is put on it."""
    if device.type != "cpu":
        return torch.empty(shape, dtype=dtype, device=device)
    size = math.prod(shape)
    kept: Tensor | None = getattr(_kept, use, None)
    if kept is None or kept.dtype != dtype or len(kept) < size:
        with torch.inference_mode(False):
            kept = torch.empty(size, dtype=dtype)
        setattr(_kept, use, kept)
    return kept[:size].view(shape)
