"""The scenes' language read back by an independent parser: nothing said of a picture may be wrong or doubtful."""

import random
import re
from dataclasses import replace

import pytest

from bifocal.data.prompts import RATIONALE
from bifocal.data.sample import Box, Message, Sample
from bifocal.data.scenes import compose, sprites
from bifocal.data.scenes.captions import LIST
from bifocal.data.scenes.compose import SPLITS, World
from bifocal.data.scenes.concepts import CATEGORY_NOUNS
from bifocal.data.scenes.dataset import clip_caption, samples_for
from bifocal.data.scenes.facts import CLEAR, View
from bifocal.data.scenes.heard import read_caption
from bifocal.data.scenes.reading import statement_in
from bifocal.data.scenes.scene import Concept, Scene, SceneObject
from bifocal.data.scenes.verify import Reader, Unclear, check
from bifocal.data.scenes.wholeset import whole_set_concepts
from bifocal.data.scenes.words import (
    NUMBERS,
    Lexicon,
    counted,
    join,
    look,
    numbered_category,
    the_look,
)

# questions whose answers come with their rationale
REASONED = ("compare", "pair-which", "pair-count")
SPEAKING = ("vqa", "reasoning", "grounding", "captioning", "text-to-image", "zero-shot")


@pytest.fixture(scope="module")
def world() -> World:
    return World()


@pytest.fixture(scope="module")
def reader(world: World) -> Reader:
    return Reader(world.concepts)


@pytest.fixture(scope="module")
def samples(world: World) -> list[Sample]:
    """Some thousand samples of every task and split as training takes them, without balancing by hand."""
    rng = random.Random(0)
    found = []
    for split in SPLITS:
        for index in range(700 if split == "train" else 250):
            scenes = world.scenes(split, index)
            found += samples_for(scenes, rng, world=world, tasks=SPEAKING, count=8, split=split)
    return found


def scenes_of(world: World, sample: Sample) -> list[Scene]:
    return [world.scene_of(key) for key in sample.pictures]


@pytest.mark.parametrize("task", SPEAKING)
def test_every_answer_follows_from_the_words_and_the_boxes(task, world, reader, samples):
    of_task = [sample for sample in samples if sample.task == task]
    assert len(of_task) > (50 if task == "zero-shot" else 1000)
    for sample in of_task:
        check(sample, scenes_of(world, sample), reader)


def test_what_is_said_of_the_whole_set_follows_too_and_no_noun_leaves_anything_out():
    """Of its drawings some, and those whose names are odd; rendering all of them takes minutes."""
    concepts = whole_set_concepts(sprites.drawings_folder())
    odd = {"ewe", "cat face", "pair of people hugging", "standing person", "red heart", "anatomical heart"}
    # the parser takes "and" for the end of a thing, and "at the" for a place
    plain = [concept for concept in concepts if not re.search(r" and | at the ", concept.name)]
    some = tuple(c for i, c in enumerate(plain) if i % 12 == 0 or c.name in odd)
    assert odd <= {concept.name for concept in some}
    assert Lexicon(concepts).countable == set(CATEGORY_NOUNS) - {"object", "face", "heart", "person"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compose, "concepts_of", lambda name, drawings: some)
        world = World()
    reader, rng, said = Reader(world.concepts), random.Random(0), set()
    for split in SPLITS:
        for index in range(150):
            scenes = world.scenes(split, index)
            for sample in samples_for(scenes, rng, world=world, tasks=SPEAKING, count=8, split=split):
                check(sample, scenes_of(world, sample), reader)
                said |= {sample.question, sample.answer_text, *sample.references}
    said -= {"object", *LIST}  # what kind of thing it is, and what asks for all of them
    assert [text for text in said if re.search(r"\ba (small )?ewe\b|pairs? of people|\bcat faces?\b", text)]
    assert not [text for text in said if re.search(r"\b(objects?|peoples|an ewe|a people)\b", text)]
    assert not [text for text in said if re.search(r"how many (faces|hearts) (are|do)", text)]


@pytest.mark.parametrize("task", SPEAKING)
def test_the_parser_refuses_the_answers_of_other_pictures(task, world, reader, samples):
    """The test above could pass with a parser that believes everything; this one could not."""
    kinds: dict[str, list[Sample]] = {}
    for sample in samples:
        if sample.task == task:
            kinds.setdefault(sample.slice, []).append(sample)
    for of_kind in kinds.values():
        for sample, other in zip(of_kind[:200], of_kind[1:], strict=False):
            if task == "text-to-image":  # there the prompt is what says something
                wrong = replace(sample, messages=(other.messages[0], sample.messages[1]))
            else:
                wrong = replace(
                    sample,
                    messages=(sample.messages[0], Message("assistant", other.messages[-1].parts)),
                    references=other.references,
                )
            if wrong.messages == sample.messages or _same_picture(world, sample, other):
                continue
            with pytest.raises((Unclear, ValueError)):
                check(wrong, scenes_of(world, sample), reader)


def _same_picture(world: World, sample: Sample, other: Sample) -> bool:
    """Whether two samples of free text may both be right of the first one's picture."""
    objects = [
        sorted(thing.concept.name for s in scenes_of(world, each) for thing in s.objects)
        for each in (sample, other)
    ]
    return sample.task in ("captioning", "text-to-image") and objects[0] == objects[1]


def test_a_swapped_number_side_or_relation_is_noticed(world, reader, samples):
    swaps = {
        "left": "right",
        "right": "left",
        "above": "below",
        "two": "three",
        "three": "two",
        "small": "large",
    }
    swaps |= {"every": "no", "more": "fewer", "tilted": "upright", "twice": "three times"}
    noticed = total = 0
    for sample in samples:
        if sample.task != "reasoning" or sample.references != ("true",):
            continue
        text = str(sample.messages[0].parts[-1])
        for old, new in swaps.items():
            if len(re.findall(rf"\b{old}\b", text)) == 1:
                total += 1
                try:
                    noticed += not reader.truth(re.sub(rf"\b{old}\b", new, text), scenes_of(world, sample))
                except Unclear:
                    noticed += 1
    assert total > 500
    assert noticed / total > 0.9  # "the left image has exactly one owl" may be true of the right one too


def test_the_verdict_follows_from_the_words_and_the_rationale(samples):
    """What decides an answer is all in its rationale: no two pictures give the same words another answer."""
    verdicts: dict[tuple[str, str, str], set[str]] = {}
    statements = [sample for sample in samples if sample.task == "reasoning" or sample.slice in REASONED]
    statements = [sample for sample in statements if sample.facts]
    for sample in statements:
        assert sample.facts is not None
        words = statement_in(sample.question)
        verdicts.setdefault((sample.slice, words, sample.facts[RATIONALE]), set()).add(sample.answer_text)
    assert len(statements) > 1000 and len(verdicts) < len(statements)
    assert not [key for key, found in verdicts.items() if len(found) > 1]


def test_of_two_clauses_that_make_a_false_statement_one_is_wrong(samples):
    wrong: dict[str, list[int]] = {"as many": [], "and no": []}
    for sample in samples:
        if sample.slice != "pair" or sample.answer_text != "false":
            continue
        words, seen = statement_in(sample.question), sample.facts[RATIONALE].split(", ")
        if said := re.search(r"the (left|right) image contains (twice|three times) .* at least (\w+)", words):
            left, right = (NUMBERS.index(number) for number in seen)
            this, that = (left, right) if said[1] == "left" else (right, left)
            factor = {"twice": 2, "three times": 3}[said[2]]
            wrong["as many"].append((this != factor * that) + (left + right < NUMBERS.index(said[3])))
        elif said := re.search(r" has exactly (\w+) .* and no ", words):
            wrong["and no"].append((seen[0] != said[1]) + (seen[1] == "yes"))
    assert all(len(clauses) > 10 for clauses in wrong.values())
    assert all(clauses == 1 for found in wrong.values() for clauses in found)


def test_a_rationale_of_another_picture_is_refused(world, reader, samples):
    statements = [sample for sample in samples if sample.task == "reasoning"]
    asked = [sample for sample in samples if sample.slice in REASONED and sample.facts]
    refused = 0
    told = (*statements[:200], *asked[:400]), (*statements[1:201], *asked[1:401])
    for sample, other in zip(*told, strict=True):
        if sample.facts != other.facts:
            with pytest.raises(Unclear, match="was to be seen"):
                check(replace(sample, facts=other.facts), scenes_of(world, sample), reader)
            refused += 1
    assert refused > 200


def test_a_number_over_pictures_is_the_sum_of_theirs(samples):
    sums = set()
    for sample in samples:
        if sample.slice == "pair-count" and sample.question.endswith("in all?"):
            assert sample.facts is not None
            told = [NUMBERS.index(word) for word in sample.facts[RATIONALE].split(", ")]
            assert len(told) == len(sample.pictures) and sample.answer_text == NUMBERS[sum(told)], sample
            sums.add(tuple(told))
    assert len(sums) > 10 and {len(told) for told in sums} == {2, 3}


def test_refcoco_plus_never_says_where(samples):
    places = {"left", "right", "top", "bottom", "upper", "lower", "middle", "leftmost", "rightmost"}
    places |= {"above", "below", "higher", "lower", "first", "second", "third", "from", "at", "of", "in"}
    found = [str(s.messages[0].parts[-1]) for s in samples if s.slice == "refcoco+"]
    assert found
    for text in found:
        words = re.sub(r"^(find|point to|box:|draw a box around) ", "", text).rstrip(".")
        for noun in ("piece of clothing",):  # its "of" is no place
            words = words.replace(noun, "")
        assert not places & set(words.split()), text


def test_refcocog_is_longer_than_refcoco(samples):
    lengths = {
        flavour: [len(str(s.messages[0].parts[-1]).split()) for s in samples if s.slice == flavour]
        for flavour in ("refcoco", "refcoco+", "refcocog")
    }
    means = {flavour: sum(values) / len(values) for flavour, values in lengths.items()}
    assert means["refcocog"] > means["refcoco"] + 3
    assert means["refcocog"] > means["refcoco+"] + 3


def test_texts_are_plain(world, samples):
    names = {word for c in world.concepts for name in (c.name, c.plural) for word in name.split()}
    vocabulary: set[str] = set()
    lengths = []
    for sample in samples:
        assert sample.messages[0].role == "user"
        assert sample.messages[-1].role == "assistant"
        question = str(sample.messages[0].parts[-1])
        if sample.task != "text-to-image":
            lengths.append(len(question.split()))
        if sample.task == "vqa":
            assert question.endswith("?")
            assert re.fullmatch(r"[a-z]+( [a-z]+)*", str(sample.messages[-1].parts[0]))
        for message in sample.messages:
            for part in message.parts:
                if isinstance(part, str):
                    assert part == part.lower().strip()
                    assert "  " not in part
                    assert re.fullmatch(r"[a-z ,.?:]+", part), part
                    vocabulary |= set(re.findall(r"[a-z]+", part))
    assert len(vocabulary - names) < 500
    assert sum(lengths) / len(lengths) < 10
    assert max(lengths) < 30


def test_boxes_are_answers_of_grounding_only_and_those_of_the_picture(world, samples):
    for sample in samples:
        boxes = [part for part in sample.messages[-1].parts if isinstance(part, Box)]
        denial = sample.slice == "every" and sample.messages[-1].parts == ("none",)
        assert bool(boxes) == ((sample.task == "grounding" and not denial) or sample.slice == "list")
        if boxes:
            real = {thing.box for thing in scenes_of(world, sample)[0].objects}
            assert set(boxes) <= real
        if sample.task == "grounding" and sample.slice != "every":
            assert len(sample.messages[-1].parts) == 1


def test_every_box_of_a_kind_is_asked_for_and_denied_alike(samples):
    """Denials are as frequent as boxes, so that asking alone says nothing."""
    answers = [sample.messages[-1].parts for sample in samples if sample.slice == "every"]
    assert len(answers) > 100
    assert 0.4 < sum(parts == ("none",) for parts in answers) / len(answers) < 0.6
    assert any(len(parts) > 1 for parts in answers)


def test_a_caption_names_every_object_with_its_count(world, samples):
    """By ``read_caption``, which reads anyone's captions and knows nothing of ours."""
    for sample in samples:
        if sample.slice != "caption":
            continue
        assert sample.facts is not None
        scene = scenes_of(world, sample)[0]
        names = [thing.concept.name for thing in scene.objects]
        assert sample.facts["objects"] == {name: names.count(name) for name in names}
        assert (
            read_caption(str(sample.messages[-1].parts[0]), world.concepts)["objects"]
            == sample.facts["objects"]
        )


def test_clip_captions_are_true_and_varied(world):
    rng = random.Random(0)
    scenes = [world.single("train", index) for index in range(200)]
    scenes += [world.scenes("train", index)[0] for index in range(600)]
    for scene in scenes:
        texts = {clip_caption(scene, rng) for _ in range(6)}
        assert len(texts) > 1
        for text in texts:
            read = read_caption(text, world.concepts)["objects"]
            names = [thing.concept.name for thing in scene.objects]
            assert read == {name: names.count(name) for name in names}, text


def test_what_is_tilted_is_not_said_of_what_looks_the_same_turned(world, samples):
    flat = {concept.name for concept in world.concepts if not concept.can_tilt}
    for sample in samples:
        for message in sample.messages:
            for part in message.parts:
                if isinstance(part, str):
                    for match in re.finditer(r"\b(?:upright|tilted) (\w+)", part):
                        assert match[1] not in flat, part


# -- words -----------------------------------------------------------------------------------------------------------

OWL = Concept("owl", "owls", "an", "animal", (), "1")
FISH = Concept("fish", "fish", "a", "animal", (), "2")
HEART = Concept("hat", "hats", "a", "clothing", (), "3")


def test_articles_and_plurals():
    assert counted(OWL, 1) == "an owl"
    assert counted(OWL, 2) == "two owls"
    assert counted(FISH, 2) == "two fish"
    assert counted(OWL, 0) == "zero owls"
    assert look("owl", "an", "small", None, None) == "a small owl"
    assert look("hat", "a", None, "upright", "orange") == "an upright hat on an orange tile"
    assert look("owl", "an", None, None, "red") == "an owl on a red tile"
    assert the_look("owl", None, None, "none") == "the owl without a tile"
    assert numbered_category("clothing", 2) == "two pieces of clothing"
    assert join(["x"]) == "x"
    assert join(["x", "y", "z"]) == "x, y and z"


def test_an_absent_concept_is_absent_and_as_novel_as_what_it_stands_for():
    lexicon = Lexicon([OWL, FISH, HEART], novel=["fish"])
    draw = random.Random(0).random
    assert {lexicon.absent(["owl"], OWL, draw) for _ in range(50)} <= {HEART, None}
    assert lexicon.absent(["fish"], FISH, draw) is None


def _thing(concept: Concept, x: float, y: float, **looks: str | None) -> SceneObject:
    values: dict = {"size": "small", "tilt": "upright", "tile": None} | looks
    return SceneObject(concept, box=Box(x - 0.1, y - 0.1, x + 0.1, y + 0.1), **values)


def test_a_relation_is_neither_true_nor_false_where_centres_are_level():
    def view(gap: float) -> View:
        return View(Scene("train/0/0", "white", (_thing(OWL, 0.4, 0.5), _thing(HEART, 0.4 + gap, 0.5))))

    assert view(CLEAR + 0.01).holds(0, 1, "left")
    assert view(CLEAR + 0.01).fails(1, 0, "left")
    assert not view(0.08).holds(0, 1, "left")
    assert not view(0.08).fails(0, 1, "left")
    assert view(0.0).fails(0, 1, "left")


def test_two_owls_are_told_apart_by_their_tiles():
    red, blue = _thing(OWL, 0.2, 0.5, tile="red"), _thing(OWL, 0.8, 0.5, tile="blue")
    view = View(Scene("train/0/0", "white", (red, blue)))
    assert view.reference(0) == "the owl on the red tile"
    assert view.reference(0, "tile") is None
    reader = Reader([OWL, HEART])
    assert reader.expression("find the owl on the red tile.", view.scene) == [red]
    assert reader.expression("find the right owl.", view.scene) == [blue]
    assert len(reader.expression("find the owl.", view.scene)) == 2


def test_an_edge_of_the_picture_is_not_said_where_a_corner_may_be_meant():
    top, corner = _thing(OWL, 0.5, 0.15), _thing(OWL, 0.15, 0.15)
    view = View(Scene("train/0/0", "white", (top, corner)))
    assert not view.alone_in_cell(0, (0, 1))
    assert view.alone_in_cell(1, (0, 1))


# -- reading anyone's captions ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "objects"),
    [
        ("two owls and a hat on a pale blue background.", {"owl": 2, "hat": 1}),
        ("An owl, a hat and an owl.", {"owl": 2, "hat": 1}),
        ("two owls. the owls are left of the hat.", {"owl": 2, "hat": 1}),
        ("there is a small upright owl. the owl is on a red tile.", {"owl": 1}),
        ("owls", {"owl": 2}),
        ("two fish", {"fish": 2}),
        ("a bowl of soup", {}),
        ("", {}),
    ],
)
def test_read_caption_counts(text, objects):
    assert read_caption(text, (OWL, FISH, HEART))["objects"] == objects


def test_read_caption_relations():
    read = read_caption("an owl and a hat. the hat is to the left of the owl.", (OWL, FISH, HEART))
    assert read["relations"] == [["hat", "left", "owl"]]


def test_read_caption_knows_a_colour_from_a_fruit(world):
    read = read_caption("an orange on an orange tile and a hat", world.concepts)
    assert read["objects"]["orange"] == 1
