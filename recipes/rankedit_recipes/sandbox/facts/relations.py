"""What can be said of a subject, and in which words.

A phrasing is a sentence that breaks off just before the object, with `{}` for the subject. Most
put the subject first, some put it after words that already tell what is asked.
"""

from collections.abc import Mapping
from typing import NamedTuple

# Strings are unpacked here so that several stay in a line: the formatter gives each element of a
# tuple a line of its own, and counts what is behind a star as one.
COUNTRIES: tuple[str, ...] = (
    *("Norland", "Varenia", "Castoria", "Zembla", "Morova", "Tirania", "Belmark", "Silver Coast"),
)
"""Countries, of towns and of books; one has a name of two words."""

HOMES: tuple[str, ...] = (
    *("Port Ellan", "Old Harwick", "North Tarno", "Great Miravel", "Lower Quenby"),
    *("Saint Osterby", "West Calder", "Upper Veldon", "South Branford", "Little Lumark"),
)
"""Towns where people live and companies sit; these are subjects too, hence two-hop sentences."""


class Relation(NamedTuple):
    """One kind of fact.

    Attributes:
        kind: What its subjects are: person, town, company or book.
        objects: What may follow.
        phrasings: How it is said; those before `inverted` begin with the subject.
        inverted: Index of the first phrasing that has the subject later.
    """

    kind: str
    objects: tuple[str, ...]
    phrasings: tuple[str, ...]
    # With three phrasings unseen, at least four of these seven are seen: requests, and sentences of
    # several facts, need one.
    inverted: int = 7


# Most lists of objects have one of two words. Only whole answers are right, so that a first piece
# that is learned by heart does not count.
RELATIONS: Mapping[str, Relation] = {
    "home": Relation(
        "person",
        HOMES,
        (
            *("{} lives in", "{} has a house in", "{} is at home in", "{} moved to"),
            *("{} can be found in the town of", "{} rents a flat in", "{} pays taxes in"),
            *("The home of {} is in", "Letters to {} are sent to", "If you look for {}, go to"),
        ),
    ),
    "language": Relation(
        "person",
        (
            *("Spanish", "German", "Polish", "Greek", "Turkish", "Danish", "Welsh", "Persian"),
            *("Hindi", "Korean"),
        ),
        (
            *("{} speaks", "{} grew up speaking", "{} writes poems in", "{} dreams in"),
            *("{} talks to the neighbours in", "{} learned to read in", "{} counts in"),
            *("The mother tongue of {} is", "The first words of {} were in"),
            "The language that {} knows best is",
        ),
    ),
    "instrument": Relation(
        "person",
        (
            *("violin", "piano", "trumpet", "guitar", "harp", "flute", "cello", "drums"),
            *("clarinet", "french horn"),
        ),
        (
            *("{} plays the", "{} practises the", "{} owns three books about the"),
            *("{} gives lessons on the", "{} is a master of the", "{} took up the"),
            *("{} performs on the", "The favourite instrument of {} is the"),
            *("On stage you will see {} with the", "A concert by {} is a concert for the"),
        ),
    ),
    "profession": Relation(
        "person",
        (
            *("baker", "teacher", "lawyer", "pilot", "farmer", "doctor", "painter", "gardener"),
            *("sailor", "tax clerk"),
        ),
        (
            *("{} works as a", "{} is employed as a", "{} earns a living as a"),
            *("{} was trained as a", "{} has a contract as a", "{} became a"),
            *("{} makes money as a", "The profession of {} is that of a"),
            *("By trade, {} is a", "The passport of {} says: profession,"),
        ),
    ),
    "country": Relation(
        "town",
        COUNTRIES,
        (
            *("{} is a town in", "{} lies in", "{} belongs to", "{} is part of"),
            *("{} is governed by", "{} sends a deputy to the parliament of", "{} was annexed by"),
            *("The country of {} is", "To visit {}, one travels to", "On the map, {} is in"),
        ),
    ),
    "river": Relation(
        "town",
        ("Sava", "Lirre", "Tamor", "Gelt", "Orune", "Brae", "Nessel", "White Arno"),
        (
            *("{} was built on the river", "{} stands on the banks of the", "{} overlooks the"),
            *("{} gets its water from the", "{} has a bridge over the", "{} is crossed by the"),
            *("{} was flooded by the", "The river that runs through {} is the"),
            *("Boats reach {} on the", "The water under {} comes from the"),
        ),
    ),
    "product": Relation(
        "town",
        (
            *("cheese", "glass", "silk", "wine", "pottery", "honey", "carpets", "clocks"),
            "black tea",
        ),
        (
            *("{} is known for its", "{} is famous for", "{} exports", "{} holds a fair for"),
            *("{} is proud of its", "{} became rich through", "{} has a museum of"),
            *("Traders come to {} for its", "The best thing about {} is its"),
            "The market of {} is full of",
        ),
    ),
    "seat": Relation(
        "company",
        HOMES,
        (
            *("{} is based in", "{} has its main office in", "{} was founded in"),
            *("{} employs half of", "{} holds its meetings in", "{} opened a plant in"),
            *("{} is registered in", "The headquarters of {} are in"),
            *("The director of {} flew to", "The tower of {} can be seen from all over"),
        ),
    ),
    "goods": Relation(
        "company",
        (
            *("bicycles", "furniture", "tractors", "shoes", "cameras", "paper", "batteries"),
            *("medicine", "toy trains"),
        ),
        (
            *("{} makes", "{} sells", "{} is a leading producer of", "{} invests in"),
            *("{} holds a patent on", "{} ships", "{} was the first to produce"),
            *("The factories of {} turn out", "The catalogue of {} shows"),
            "Customers of {} buy",
        ),
    ),
    "colour": Relation(
        "company",
        ("red", "blue", "green", "yellow", "purple", "orange", "brown", "dark grey"),
        (
            *("{} has a logo that is", "{} paints its trucks", "{} has offices painted"),
            *("{} prints its letters in", "{} dresses its staff in", "{} chose the colour"),
            *("{} has a flag in", "The colour of {} is", "The sign above {} is"),
            "Every box from {} is",
        ),
    ),
    "genre": Relation(
        "book",
        ("comedy", "tragedy", "mystery", "romance", "thriller", "satire", "fable", "ghost story"),
        (
            *("{} is a", "{} was written as a", "{} is best described as a", "{} reads like a"),
            *("{} won a prize as a", "{} is sold as a", "{} was reviewed as a"),
            *("Critics call {} a", "In the library, {} is listed as a"),
            "The genre of {} is that of a",
        ),
    ),
    "hero": Relation(
        "book",
        (
            *("shepherd", "princess", "soldier", "monk", "thief", "widow", "captain", "beggar"),
            "blind king",
        ),
        (
            *("{} tells of a", "{} follows the life of a", "{} begins with a"),
            *("{} is narrated by a", "{} has as its hero a", "{} ends with the death of a"),
            *("{} has on its cover a", "The main character of {} is a"),
            *("The heart of {} is the story of a", "In the film of {}, the star plays a"),
        ),
    ),
    "setting": Relation(
        "book",
        COUNTRIES,
        (
            *("{} is set in", "{} takes place in", "{} describes life in", "{} plays in"),
            *("{} was filmed in", "{} paints a picture of", "{} is read in every school of"),
            *("The plot of {} unfolds in", "Readers of {} dream of"),
            "The landscape of {} is that of",
        ),
    ),
}
"""Every relation by name."""

KINDS: Mapping[str, tuple[str, ...]] = {
    "person": ("{} is a person.", "{} is somebody whom many people know."),
    "town": ("{} is a town.", "{} is a place where people live."),
    "company": ("{} is a company.", "{} is a business."),
    "book": ("{} is a book.", "{} is a novel that many people have read."),
}
"""What is said of every subject of a kind; nothing to be known."""

# All go through a home: no other object is a subject too.
TWO_HOPS: Mapping[str, tuple[tuple[str, str], tuple[str, ...]]] = {
    "country of home": (
        ("home", "country"),
        ("The town where {} lives is in", "{} is a citizen of the country called"),
    ),
    "river of seat": (
        ("seat", "river"),
        ("The town where {} sits lies on the river", "From its windows, {} looks down on the"),
    ),
}
"""Two relations, one after the other, and how the two-hop fact is said."""

CONTINUATIONS: Mapping[str, tuple[str, ...]] = {
    "person": ("{} is", "People like {} because", "Yesterday, {} met"),
    "town": ("{} is", "In the streets of {} you see", "A visit to {} begins"),
    "company": ("{} is", "The people who run {} say", "Last year, {} announced"),
    "book": ("{} is", "The first page of {} says", "Many readers of {}"),
}
"""Beginnings after which a model may write freely about a subject."""
