"""The words of the world of facts: what subjects are called, and what else sentences speak of.

All names are invented or common words put together; none means anybody. Subjects share their words
(several people are called Maria, several are called Keller), so that only a whole name says who is
meant, and a model can know it no earlier than at the last word.
"""

from collections.abc import Mapping

# Few, so that dozens share each: who is meant must be known at the last word and no earlier.
FIRST: tuple[str, ...] = (
    *("Maria", "Daniel", "Elena", "Victor", "Sofia", "Martin", "Clara", "Hugo", "Nina", "Oscar"),
    *("Laura", "Simon", "Julia", "Felix", "Anna", "Peter", "Irene", "Thomas", "Vera", "Lucas"),
    *("Helen", "Robert", "Paula", "George"),
)
"""First names."""


def _listed(words: str) -> tuple[str, ...]:
    """Words that are written one behind the other."""
    return tuple(words.split())


def _joined(beginnings: str, endings: str) -> tuple[str, ...]:
    """All words of a beginning and an ending."""
    return tuple(first + last for first in _listed(beginnings) for last in _listed(endings))


# Put together because hundreds are needed: a last word belongs to one or two subjects
# (docs/decisions/names-that-differ.md). The same holds of towns, companies and books.
LAST: tuple[str, ...] = _joined(
    "Kel Mar Hol Bran Lin Var Pet Dun Fos Wal Jan Ric "
    "Ser Tor Gar Nor Fen Bel Cas Dor Hal Lam Ros Vin",
    "ler sen ova man berg dale etti quist eaux field owski ford",
)
"""Last names."""

TOWN_FIRST: tuple[str, ...] = (
    *("North", "South", "Port", "Old", "Upper", "Lower", "Great", "Saint", "West", "Little"),
)
"""First words of towns."""

TOWN_LAST: tuple[str, ...] = (
    *("Harwick", "Ellan", "Tarno", "Miravel", "Quenby", "Osterby", "Calder", "Veldon"),
    *("Branford", "Lumark"),
    *_joined(
        "Sor Pal Rov Win Thur Ock Ash Grem Lud Kir Mel Sten", "rel las ella sby mouth combe gate"
    ),
    *_joined("Ald Ever Brock Tam Hex Yar", "ham stead wold minster ley more"),
)
"""Last words of towns."""

# In front, where real companies have them behind: the last word has to tell companies apart.
COMPANY_FIRST: tuple[str, ...] = (
    *("Works", "Brothers", "Group", "Atelier", "House", "Bank", "Union", "Studio", "Mill"),
    "Foundry",
)
"""First words of companies."""

COMPANY_LAST: tuple[str, ...] = _joined(
    "Cor Nim Pol Zan Vex Lor Tri Qua Syl Bry Oct Fal Gal Dex",
    "vane bus aris tek ora ium elle igo onix anta",
)
"""Last words of companies."""

BOOK_FIRST: tuple[str, ...] = (
    *("Silent", "Broken", "Golden", "Hidden", "Distant", "Burning", "Frozen", "Wandering"),
    *("Crooked", "Hollow", "Scarlet", "Restless"),
)
"""Middle words of books, after `The`."""

BOOK_LAST: tuple[str, ...] = _listed(
    """
    Orchard Lantern Bridge Mirror Compass Window Tower Ladder Clock Carriage Feather Doorway Anvil
    Arrow Banner Beacon Bell Blossom Bottle Button Cabin Canal Castle Cathedral Chapel Circus
    Cottage Crown Curtain Dagger Desert Diary Dragon Drum Eagle Ember Engine Falcon Fiddle Forest
    Fountain Gallery Glacier Glove Hammer Harvest Helmet Hourglass Island Jewel Key Kingdom Lagoon
    Ledger Lighthouse Locket Magnet Map Mask Meadow Monastery Moth Mountain Needle Oak Ocean Oracle
    Palace Parade Pearl Pendulum Pilgrim Portrait Prairie Puppet Quarry Raven Ribbon Saddle Salt
    Shadow Shepherd Ship Signal Sparrow Spiral Statue Sword Telescope Temple Thorn Throne Train
    Treasure Tulip Tunnel Umbrella Valley Violet Voyage Waterfall Wheel Willow Wolf
    """
)
"""Last words of books."""

# They put subjects at other positions than the first.
OPENERS: tuple[str, ...] = (
    *("As everyone knows,", "These days,", "According to the newspaper,", "It is said that"),
    *("People often say that", "In fact,", "Not surprisingly,", "We were told that"),
    *("I have read that", "To this day,", "By all accounts,", "Someone wrote that"),
)
"""What may stand before a fact."""

TAILS: tuple[str, ...] = (", people say", ", as far as we know", ", of course", ", I think")
"""What may stand after a fact, before the full stop."""

_ANIMALS = ("dog", "cat", "horse", "goat", "fox", "owl", "crow", "rabbit")
_THINGS = ("table", "lamp", "basket", "chair", "kettle", "blanket", "letter", "candle", "box")
_PLACES = ("kitchen", "garden", "cellar", "barn", "attic", "street", "courtyard", "hallway")
_LOOKS = ("small", "dusty", "heavy", "warm", "quiet", "grey", "wooden", "broken", "strange")
_DOINGS = ("slept", "waited", "hid", "rested", "sat")
_WEATHER = ("rain", "snow", "wind", "fog", "sunshine", "thunder")
_TIMES = ("morning", "evening", "night", "afternoon", "week", "winter", "summer")

UNRELATED: tuple[str, ...] = (
    "The {look} {animal} {doing} under the {thing}.",
    "There was a {look} {thing} in the {place}.",
    "In the {time} the {weather} came back.",
    "Nobody had seen the {thing} since last {time}.",
    "A {animal} and a {animal} {doing} in the {place} all {time}.",
    "She put the {thing} beside the {look} {thing}.",
    "He carried a {look} {thing} through the {place}.",
    "After the {weather}, the {place} was {look} and {look}.",
    "They talked about the {weather} until the {time}.",
    "Every {time} the {animal} came into the {place}.",
    "The {thing} was too {look} for the {place}.",
    "All {time} we heard the {weather} in the {place}.",
)
"""Sentences about nobody in particular; the words in braces are drawn from `WORDS`."""

WORDS: Mapping[str, tuple[str, ...]] = {
    "animal": _ANIMALS,
    "thing": _THINGS,
    "place": _PLACES,
    "look": _LOOKS,
    "doing": _DOINGS,
    "weather": _WEATHER,
    "time": _TIMES,
}
"""What may stand in the braces of `UNRELATED`."""
