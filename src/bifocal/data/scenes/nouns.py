"""Articles and plurals of English names, for those nobody wrote a plural for by hand."""

from __future__ import annotations

_IRREGULAR = {
    "man": "men", "woman": "women", "person": "people", "child": "children", "mouse": "mice",
    "goose": "geese", "foot": "feet", "tooth": "teeth", "ox": "oxen", "die": "dice", "leaf": "leaves",
    "wolf": "wolves", "knife": "knives", "loaf": "loaves", "scarf": "scarves", "shelf": "shelves",
    "elf": "elves", "potato": "potatoes", "tomato": "tomatoes", "mango": "mangoes", "volcano": "volcanoes",
    "hero": "heroes", "mosquito": "mosquitoes", "buffalo": "buffaloes", "tornado": "tornadoes",
    "cactus": "cacti", "superhero": "superheroes", "postman": "postmen", "snowman": "snowmen",
    "merman": "mermen",
}  # fmt: skip
# One of these is written like several of them.
_UNCHANGED = {
    "fish", "sheep", "deer", "moose", "bison", "shrimp", "squid", "salmon", "swine", "aircraft",
    "spacecraft", "sushi", "dango", "rice", "bread", "popcorn", "bacon", "butter", "salt", "ice", "cheese",
    "soap", "coral", "wood", "money", "furniture", "ginger", "garlic", "broccoli", "tea", "coffee", "milk",
    "honey", "hair", "lightning", "skis", "scissors", "jeans", "shorts", "briefs", "glasses", "sunglasses",
    "goggles", "gloves", "socks", "chopsticks", "maracas", "fries", "grapes", "cherries", "blueberries",
    "beans", "peanuts", "pancakes", "bubbles", "dolls", "clothes", "shoes", "houses", "knobs", "frames",
    "tickets", "arts", "notes", "ears", "hands", "eyes", "lungs", "footprints", "eggs", "prints",
    "fireworks", "mugs", "swords", "chains", "bags", "wings", "hearts", "streamers", "flags", "cards",
    "pins", "books", "buns", "twins", "lips", "headphones", "binoculars", "pliers", "biceps", "americas",
    "claus",
}  # fmt: skip
# The head of "bowl with spoon" or "woman in lotus position" stands before these words.
_AFTER_HEAD = {
    "with",
    "in",
    "of",
    "on",
    "at",
    "and",
    "without",
    "behind",
    "over",
    "under",
    "holding",
    "wearing",
}
_PEOPLE = {"man", "woman", "person", "boy", "girl", "child", "baby", "men", "women", "people"}


def article_for(name: str) -> str:
    """The indefinite article by sound, also where the first letter misleads: "a unicorn", "an hourglass"."""
    if name.startswith(("uni", "use", "ukulele", "ufo", "one-", "one ", "euro", "ewe", "utensil")):
        return "a"
    if name.startswith(("hour", "x-ray", "atm", "honest", "heir")):
        return "an"
    return "an" if name[:1] in tuple("aeiou") else "a"


def plural_of(name: str) -> str:
    """The plural of a noun or noun phrase: "owls", "bowls with spoon", "women running", "hot peppers"."""
    words = name.split()
    head = len(words) - 1
    for position, word in enumerate(words):
        if word in _AFTER_HEAD and position > 0:
            head = position - 1
            break
        if word in _PEOPLE and position + 1 < len(words) and words[position + 1].endswith("ing"):
            head = position
            break
    return " ".join([*words[:head], _plural_word(words[head]), *words[head + 1 :]])


def _plural_word(word: str) -> str:
    if word in _UNCHANGED:
        return word
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if word.endswith("man") and word not in {"human", "ottoman", "talisman"}:
        return word[:-3] + "men"
    if word.endswith(("s", "x", "z", "ch", "sh")):
        return word + "es"
    if word.endswith("y") and len(word) > 1 and word[-2] not in "aeiou":
        return word[:-1] + "ies"
    return word + "s"
