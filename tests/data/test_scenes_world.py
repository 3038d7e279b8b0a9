"""Scenes: their splits, their truth against the painted pixels, and the drawings they are made of."""

import collections
import itertools

import numpy as np
import pytest
from PIL import Image

from bifocal.config import UserError
from bifocal.data.boxes import area, iou
from bifocal.data.scenes import (
    BACKGROUND_RGB,
    CATEGORY_NOUNS,
    SPLITS,
    TILE_COLOURS,
    TILE_RGB,
    World,
    WorldSettings,
    sprites,
)
from bifocal.data.scenes.concepts import quickstart_concepts, small_concepts, upright_turns
from bifocal.data.scenes.nouns import article_for, plural_of
from bifocal.data.scenes.scene import Scene
from bifocal.data.scenes.wholeset import whole_set_concepts

MANY = 1500
PLAIN_SPLITS = ("train", "validation", "test")


@pytest.fixture(scope="module")
def world():
    return World()


@pytest.fixture(scope="module")
def episodes(world):
    """Many episodes of every split: {split: [(scene, ...), ...]}."""
    return {
        split: [world.scenes(split, i) for i in range(MANY if split == "train" else 400)] for split in SPLITS
    }


def _scenes(episodes, split):
    return [scene for episode in episodes[split] for scene in episode]


def _names(scene):
    return [item.concept.name for item in scene.objects]


def _content(scene):
    """What stands where, as a set: the most that two equal pictures could share, colours left out."""
    return frozenset((item.concept.name, item.box) for item in scene.objects)


# -- concepts --


def test_quickstart_concepts_are_120_plain_balanced_and_unambiguous():
    concepts = quickstart_concepts()
    assert len(concepts) == 120
    counts = collections.Counter(concept.category for concept in concepts)
    assert len(counts) == 6 and min(counts.values()) >= 12 and max(counts.values()) <= 24
    words = [word for concept in concepts for word in (concept.name, *concept.aliases)]
    assert len(words) == len(set(words)) and all(" " not in concept.name for concept in concepts)
    assert set(counts) <= set(CATEGORY_NOUNS) and not set(words) & set(CATEGORY_NOUNS)
    plurals = [concept.plural for concept in concepts]
    assert len(plurals) == len(set(plurals))
    assert all(concept.article == ("an" if concept.name[0] in "aeiou" else "a") for concept in concepts)


def test_the_small_set_is_a_quarter_of_the_quickstart_in_its_proportions():
    small, whole = small_concepts(), quickstart_concepts()
    assert len(small) == 30 and set(small) < set(whole)
    of_each = collections.Counter(concept.category for concept in whole)
    assert collections.Counter(concept.category for concept in small) == {
        category: count / 4 for category, count in of_each.items()
    }
    assert World(WorldSettings(concepts="small")).novel_concepts


def test_every_concept_has_its_own_drawing(world):
    files = {sprites.drawings_folder() / f"{concept.hexcode}.svg" for concept in world.concepts}
    assert len(files) == len(world.concepts) and all(path.is_file() for path in files)


@pytest.mark.parametrize(
    ("name", "article", "plural"),
    [
        ("owl", "an", "owls"),
        ("unicorn", "a", "unicorns"),
        ("hourglass", "an", "hourglasses"),
        ("fox", "a", "foxes"),
        ("butterfly", "a", "butterflies"),
        ("monkey", "a", "monkeys"),
        ("fish", "a", "fish"),
        ("person walking", "a", "people walking"),
        ("bowl with spoon", "a", "bowls with spoon"),
        ("police officer", "a", "police officers"),
        ("snowman", "a", "snowmen"),
        ("ewe", "a", "ewes"),
        ("pair of people hugging", "a", "pairs of people hugging"),
    ],
)
def test_articles_and_plurals(name, article, plural):
    assert (article_for(name), plural_of(name)) == (article, plural)


def test_the_whole_set_is_large_plain_and_unambiguous():
    concepts = whole_set_concepts(sprites.drawings_folder())
    assert len(concepts) > 1000
    words = [word for concept in concepts for word in (concept.name, *concept.aliases)]
    assert len(words) == len(set(words))
    assert all(name.isascii() and name == name.lower() and "_" not in name for name in words)
    assert not [c.plural for c in concepts if {"peoples", "mens", "womens"} & set(c.plural.split())]
    left_out = ("skin tone", "flag of", "keycap", "button", "o'clock", "facing right")
    assert not [c.name for c in concepts for part in left_out if part in c.name]
    assert {concept.category for concept in concepts} <= set(CATEGORY_NOUNS)
    by_name = {concept.name: concept.category for concept in concepts}
    expected = {
        "owl": "animal",
        "pizza": "food",
        "rocket": "vehicle",
        "sunflower": "plant",
        "guitar": "instrument",
    }
    assert {name: by_name[name] for name in expected} == expected


# -- drawings --


def test_sprites_are_visible_in_every_size_and_turn(world):
    count = len(world.concepts) * sprites.PER_CONCEPT
    assert len(world._sprites.heights) == count
    for index in range(count):
        pixels = world._sprites.picture(index)
        *_, side, turn = sprites.VARIANTS[index % sprites.PER_CONCEPT]
        assert side - 2 <= max(pixels.shape[:2]) <= round(1.2 * side)
        assert pixels[..., 3].sum() / 255 > 30  # pixels of ink, even in the thin lines of a small hammer
        assert (pixels[..., :3] <= pixels[..., 3:]).all()  # premultiplied
        # Cropped to what is visible: no empty row or column at any edge.
        alpha = pixels[..., 3]
        assert alpha[0].any() and alpha[-1].any() and alpha[:, 0].any() and alpha[:, -1].any()


def test_large_is_clearly_larger_than_small(world):
    for index in range(len(world.concepts)):
        first = index * sprites.PER_CONCEPT
        longest = {
            size: [
                max(world._sprites.picture(first + variant).shape[:2])
                for tilt in ("upright", "tilted")
                for variant in sprites.DRAWINGS[size, tilt]
            ]
            for size in ("small", "large")
        }
        assert min(longest["large"]) > 1.15 * max(longest["small"])


def test_round_drawings_cannot_tilt_and_long_ones_can(world):
    can_tilt = {concept.name: concept.can_tilt for concept in world.concepts}
    assert not any(can_tilt[name] for name in ("orange", "kiwi", "cookie", "donut", "compass"))
    assert all(can_tilt[name] for name in ("guitar", "giraffe", "pencil", "bus", "panda", "hat", "penguin"))


def test_straightened_drawings_stand_upright(world):
    """A guitar is drawn on the diagonal; here the upright one is tall and narrow."""
    for name in ("guitar", "pencil", "broom", "screwdriver", "rocket"):
        index = next(i for i, concept in enumerate(world.concepts) if concept.name == name)
        for variant in sprites.DRAWINGS["large", "upright"]:
            height, width, _ = world._sprites.picture(index * sprites.PER_CONCEPT + variant).shape
            assert height > 1.5 * width
    assert set(upright_turns()) <= {concept.hexcode for concept in world.concepts}


# -- scenes against their pixels --


def test_boxes_are_tight_against_the_painted_pixels(world):
    """Each object is painted alone on two different grounds: what changes is exactly its box."""
    size = world.settings.picture_size
    checked = 0
    for scene in _first(world, "train", 150):
        for item in scene.objects:
            # Two grounds, since a drawing may hold the very colour of one of them.
            changed = np.zeros((size, size), bool)
            for ground in ("white", "light grey"):
                alone = world.render(Scene(scene.key, ground, (item,)))
                changed |= (alone != np.array(BACKGROUND_RGB[ground], np.uint8)).any(axis=2)
            rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
            painted = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
            assert np.array_equal(painted, np.array(item.box) * size)
            checked += 1
    assert checked > 300


def test_all_objects_of_a_scene_are_painted(world):
    for scene in _first(world, "train", 100):
        picture = world.render(scene)
        assert picture.shape == (64, 64, 3) and picture.dtype == np.uint8
        for left_out in range(len(scene.objects)):
            others = scene.objects[:left_out] + scene.objects[left_out + 1 :]
            without = world.render(Scene(scene.key, scene.background, others))
            assert (picture != without).any()


def test_tiles_and_backgrounds_have_their_colours(world):
    assert tuple(TILE_RGB) == TILE_COLOURS
    colours = np.array([*TILE_RGB.values(), *BACKGROUND_RGB.values()], float)
    tiles, grounds = colours[: len(TILE_RGB)], colours[len(TILE_RGB) :]
    apart = np.linalg.norm(tiles[:, None] - tiles[None], axis=2)[np.triu_indices(len(tiles), 1)]
    assert apart.min() > 60
    assert np.linalg.norm(tiles[:, None] - grounds[None], axis=2).min() > 60
    seen = set()
    for scene in _first(world, "train", 300):
        picture = world.render(scene)
        for item in scene.objects:
            if item.tile is not None:
                x1, y1, x2, y2 = (round(value * 64) for value in item.box)
                inside = picture[y1:y2, x1:x2].reshape(-1, 3)
                assert (inside == TILE_RGB[item.tile]).all(axis=1).mean() > 0.1
                seen.add(item.tile)
    assert seen == set(TILE_COLOURS)


def test_overlap_is_small_and_nothing_leaves_the_picture(world, episodes):
    for split in SPLITS:
        for scene in _scenes(episodes, split):
            for item in scene.objects:
                assert 0 <= item.box.x1 < item.box.x2 <= 1 and 0 <= item.box.y1 < item.box.y2 <= 1
            for a, b in itertools.combinations([item.box for item in scene.objects], 2):
                assert iou(a, b) < 0.05
                shared = iou(a, b) * (area(a) + area(b)) / (1 + iou(a, b))
                assert shared <= 0.081 * min(area(a), area(b))


def test_what_cannot_tilt_is_upright(episodes):
    for scene in _scenes(episodes, "train"):
        assert all(item.tilt == "upright" for item in scene.objects if not item.concept.can_tilt)


# -- one scene, always the same --


def test_scenes_are_pure_functions_of_their_place(world):
    again = World()
    # Backwards and in another order of splits: nothing may depend on what was asked before.
    for split in reversed(SPLITS):
        for index in reversed(range(25)):
            assert world.scenes(split, index) == again.scenes(split, index)
    assert np.array_equal(world.picture("train/3/0"), again.picture("train/3/0"))
    assert world.fingerprint == again.fingerprint


def test_seed_and_settings_change_the_scenes_and_the_fingerprint(world):
    other = World(WorldSettings(seed=1))
    assert [world.scene("train", i) for i in range(5)] != [other.scene("train", i) for i in range(5)]
    assert other.fingerprint != world.fingerprint
    # What is novel belongs to the drawings, so that worlds of two seeds may be mixed.
    assert other.novel_concepts == world.novel_concepts and other.novel_pairs == world.novel_pairs


def test_keys_name_their_pictures(world):
    for split in SPLITS:
        for slot, scene in enumerate(world.scenes(split, 7, pictures=3)):
            assert scene.key == f"{split}/7/{slot}"
            assert world.scene_of(scene.key) == scene == world.scene(split, 7, slot)
            assert np.array_equal(world.picture(scene.key), world.render(scene))
    single = world.single("test", 4)
    assert single.key == "test/4/single" and world.scene_of(single.key) == single


def test_forcing_the_number_of_pictures_keeps_the_first_ones(world):
    for index in range(30):
        three = world.scenes("train", index, pictures=3)
        natural = world.scenes("train", index)
        assert natural == three[: len(natural)] and world.scenes("train", index, pictures=1) == three[:1]


@pytest.mark.parametrize(
    "key", ["", "train", "train/1", "train/1/0/0", "train/-1/0", "nowhere/1/0", "train/1/7"]
)
def test_a_wrong_key_is_refused(world, key):
    with pytest.raises(UserError):
        world.picture(key)


def test_wrong_settings_are_refused(world):
    with pytest.raises(UserError, match="picture_size is 8"):
        WorldSettings(picture_size=8)
    with pytest.raises(UserError, match="max_objects is 1"):
        WorldSettings(max_objects=1)
    with pytest.raises(UserError, match='no set of concepts named "zoo"'):
        World(WorldSettings(concepts="zoo"))
    with pytest.raises(UserError, match='no split "dev"'):
        world.scene("dev", 0)
    with pytest.raises(UserError, match="takes two"):
        world.single("test-novel-pairs", 0)


def test_other_sizes_are_painted_alike():
    large = World(WorldSettings(picture_size=128, max_objects=3))
    for scene in _first(large, "train", 20):
        assert large.render(scene).shape == (128, 128, 3) and len(scene.objects) <= 3


# -- splits --


def test_no_scene_of_one_split_is_in_another(world, episodes):
    contents = {
        split: {_content(scene) for scene in _scenes(episodes, split)}
        | ({_content(world.single(split, i)) for i in range(400)} if split != "test-novel-pairs" else set())
        for split in SPLITS
    }
    for a, b in itertools.combinations(SPLITS, 2):
        assert not contents[a] & contents[b]


def test_buckets_of_splits_exclude_each_other(world, episodes):
    """Not only were no two found alike: a scene of one split can never be made in another."""
    from bifocal.data.scenes.plan import Item

    index = {concept.name: i for i, concept in enumerate(world.concepts)}
    for split in SPLITS:
        for scene in _scenes(episodes, split)[:200]:
            layout = [
                Item(
                    index[item.concept.name],
                    0,
                    0,
                    -1,
                    0,
                    0,
                    0,
                    round(item.box.x1 * 64),
                    round(item.box.y1 * 64),
                )
                for item in scene.objects
            ]
            assert [other for other in SPLITS if world._owns(other, layout)] == [split]
            assert world._owns(split, layout[::-1])  # the order of painting does not count


def _pairs(names):
    return {tuple(sorted(pair)) for pair in itertools.combinations(set(names), 2)}


def test_novel_pairs_meet_only_in_their_split(world, episodes):
    assert 0.06 < len(world.novel_pairs) / (112 * 111 / 2) < 0.10
    for split in (*PLAIN_SPLITS, "test-novel-concepts"):
        for episode in episodes[split]:
            names = [name for scene in episode for name in _names(scene)]
            assert not _pairs(names) & world.novel_pairs
    for scene in _scenes(episodes, "test-novel-pairs"):
        assert _pairs(_names(scene)) & world.novel_pairs


def test_every_concept_keeps_most_of_its_company(world):
    partners = collections.Counter(name for pair in world.novel_pairs for name in pair)
    assert max(partners.values()) < 30


def test_novel_concepts_have_company_only_in_their_split(world, episodes):
    novel = {concept.name for concept in world.novel_concepts}
    assert len(novel) == 8 and len({concept.category for concept in world.novel_concepts}) == 6
    alone = 0
    for split in (*PLAIN_SPLITS, "test-novel-pairs"):
        for scene in _scenes(episodes, split):
            if novel & set(_names(scene)):
                assert len(scene.objects) == 1
                alone += 1
    assert alone > 0  # shown alone at their natural share, not hidden
    for scene in _scenes(episodes, "test-novel-concepts"):
        assert novel & set(_names(scene)) and len(set(_names(scene))) > 1


def test_single_scenes_show_every_concept(world):
    scenes = [world.single("train", i) for i in range(2000)]
    assert all(len(scene.objects) == 1 for scene in scenes)
    counts = collections.Counter(_names(scene)[0] for scene in scenes)
    assert set(counts) == {concept.name for concept in world.concepts}
    assert max(counts.values()) < 4 * 2000 / 120  # uniform: about 17 each
    novel = {concept.name for concept in world.novel_concepts}
    assert {_names(world.single("test-novel-concepts", i))[0] for i in range(200)} == novel


# -- what scenes are like --


def test_shares_of_single_scenes(world):
    scenes = list(_first(world, "train", 3000))
    numbers = collections.Counter(len(scene.objects) for scene in scenes)
    assert set(numbers) == {1, 2, 3, 4, 5} and min(numbers.values()) > 0.09 * len(scenes)
    repeats = sum(len(set(_names(scene))) < len(scene.objects) for scene in scenes) / len(scenes)
    assert 0.40 < repeats < 0.52
    objects = [item for scene in scenes for item in scene.objects]
    assert 0.35 < sum(item.tile is not None for item in objects) / len(objects) < 0.50
    assert 0.30 < sum(item.size == "large" for item in objects) / len(objects) < 0.55
    assert 0.30 < sum(item.tilt == "tilted" for item in objects) / len(objects) < 0.45
    tiles = collections.Counter(item.tile for item in objects if item.tile)
    assert min(tiles.values()) > 0.08 * sum(tiles.values())
    grounds = collections.Counter(scene.background for scene in scenes)
    assert min(grounds.values()) > 0.1 * len(scenes)


def test_things_alike_are_mostly_told_apart_by_looks(world):
    alike = apart = nearly = 0
    for scene in _first(world, "train", 2000):
        for a, b in itertools.combinations(scene.objects, 2):
            if a.concept == b.concept:
                differences = (a.size != b.size) + (a.tilt != b.tilt) + (a.tile != b.tile)
                alike, apart, nearly = alike + 1, apart + (differences > 0), nearly + (differences == 1)
    assert apart / alike > 0.85 and nearly / alike > 0.4


def test_pictures_of_an_episode_can_be_compared(episodes):
    numbers = collections.Counter(len(episode) for episode in episodes["train"])
    shares = [numbers[n] / MANY for n in (1, 2, 3)]
    assert np.allclose(shares, (0.70, 0.25, 0.05), atol=0.04)
    common = same = twice = other = 0
    pairs = [episode[:2] for episode in episodes["train"] if len(episode) > 1]
    for left, right in pairs:
        a, b = collections.Counter(_names(left)), collections.Counter(_names(right))
        shared = set(a) & set(b)
        common += bool(shared)
        same += any(a[name] == b[name] for name in shared)
        twice += any(a[name] == 2 * b[name] or b[name] == 2 * a[name] for name in shared)
        other += set(a) != set(b)
    share = 1 / len(pairs)
    assert common * share > 0.8 and same * share > 0.3 and twice * share > 0.25 and other * share > 0.6


# -- the cache of the whole set --


def test_cached_sprites_are_the_rendered_ones_and_a_broken_cache_is_rendered_again(
    tmp_path, monkeypatch, caplog
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    some = quickstart_concepts()[:3]

    def make(cache):
        return sprites.make_sprites(some, upright_turns(), 64, cache=cache)

    rendered, first, second = make(False), make(True), make(True)
    (file,) = (tmp_path / "bifocal").iterdir()
    for name in sprites.Sprites.__slots__:
        assert np.array_equal(getattr(rendered, name), getattr(first, name))
        assert np.array_equal(getattr(rendered, name), getattr(second, name))
    file.write_bytes(file.read_bytes()[:500])
    assert np.array_equal(make(True).pixels, rendered.pixels)
    assert "is broken" in caplog.text
    caplog.clear()
    make(True)
    assert not caplog.text


def test_an_empty_drawing_is_an_error(tmp_path):
    (tmp_path / "0.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 72 72"/>')
    with pytest.raises(ValueError, match="no visible pixels"):
        sprites.render_large(tmp_path / "0.svg", 64)


def test_tiles_fill_their_box_with_round_corners():
    mask = sprites.tile_mask(20)
    assert mask[0, 10] == mask[10, 0] == mask[19, 10] == mask[10, 19] == 1 and mask[0, 0] < 0.1
    assert np.allclose(mask, mask.T) and np.allclose(mask, mask[::-1])


def test_rendering_is_over_compositing(world):
    """The float canvas gives what Pillow's alpha compositing gives, up to rounding."""
    for scene in _first(world, "train", 20):
        plain = [item for item in scene.objects if item.tile is None]
        expected = Image.new("RGBA", (64, 64), (*BACKGROUND_RGB[scene.background], 255))
        for item in plain:
            index = world._index[item.concept.hexcode] * sprites.PER_CONCEPT
            drawn = world._sprites.picture(index + sprites.DRAWINGS[item.size, item.tilt][item.drawing])
            layer = Image.frombytes("RGBa", drawn.shape[1::-1], drawn.tobytes()).convert("RGBA")
            expected.alpha_composite(layer, (round(item.box.x1 * 64), round(item.box.y1 * 64)))
        painted = world.render(Scene(scene.key, scene.background, tuple(plain)))
        difference = painted.astype(int) - np.asarray(expected.convert("RGB"))
        assert np.abs(difference).max() <= 3


def _first(world, split, count):
    return (world.scene(split, index) for index in range(count))
