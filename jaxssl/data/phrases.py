"""Any number of sentences to read aloud, from words and patterns of our own, so that hours of speech need no book.

    "the", "a" and the like, an adjective or none, a noun, a verb, and a place, a time or a reason behind it

They mean little and have every English phone in many surroundings: some 900 words, chosen for their sounds, and numbers
and names. Real text is better where there is some: `read_texts`.

>>> rng = np.random.default_rng(0)
>>> passage(rng, letters=40)
'Dorothy will command no lion, until this village may admire his thick seed across the tail on Wednesday morning.'
"""

from pathlib import Path

import numpy as np

from compress.errors import InputError
from jaxssl.data.sentences import SENTENCES

OWN = 0.2  # share of sentences that are the embedded corpus's
LONGEST = 300  # letters of a line; what is longer is parted at its sentences by whoever wrote it


def _listed(text: str, *, parted: str | None = None) -> tuple[str, ...]:
    return tuple(" ".join(each.split()) for each in text.split(parted))


NOUNS = _listed(
    """
    acorn actor advice airport alley ambition anchor angel ankle apple apron archer arrow artist attic author autumn
    badge baker balcony ball bandage banjo bargain barley barn basin basket battery beach beard beaver bedroom
    beggar bench berry birch bishop blanket blossom board boat bonfire boot bottle boulder bowl branch breath breeze
    brick bridge broom brother brush bubble bucket buffalo builder bullet bureau bush butcher button cabin cabbage
    cable cage camel canal candle canoe canyon captain carpet carriage cart castle cathedral cattle cave cedar
    cellar chain chair chalk champion chapel charm cheek cheese cherry chest chicken chimney chin choir church
    circle circus city clay cliff cloak clock cloth cloud clover coach coal coast coin college colour compass cook
    copper cork corner cottage cotton couch cough council country courage cousin cow crab cradle crane creature
    creek crew crown crowd cup curtain cushion dairy danger daughter dawn death debt deer desert desk dialogue
    dinner dish doctor donkey door dove dragon drawer dream dress drum duchess duck duke dust eagle ear earth echo
    edge effort egg elbow elephant elm engine enjoyment envelope evening event eye fabric failure faith falcon farm
    fashion father feather fellow fence fever field fig finger fire fish flag flame flesh flood floor flour flower
    flute fog food fool forest fork fortune fountain fox friend frog fruit fuel fur furniture future garage garden
    garlic gate gauge gesture giant ginger girl glacier glass glove goat gold goose gown grain grape grass grave
    guard guess guest guide guitar gun habit hail hair hammer hand harbour hat hawk head health heart hedge heel
    height herb hero hill hinge hole honey hood hoof hook horn horse hospital hotel hour house hunger hut ice
    iceberg idea inch ink insect island ivory jacket jail jam jaw jewel joint joke journal journey joy judge juice
    jury kettle key kidney king kiss kitchen kite knee knife knot label ladder lake lamb lamp language lantern
    laughter lawn lawyer leaf leather lemon leopard letter lid light lily lion lip liquor lizard loaf lock log loom
    luggage lunch lung machine magic maid mail maple marble margin market marriage mask match meadow measure meat
    melon memory merchant metal milk mill mind miner mirror mist mixture money monk month moon morning moth mother
    mountain mouse mouth mud muscle museum music nail name napkin nation nature neck needle neighbour nephew nerve
    nest net night noise noon north nose notebook nurse oak oath ocean office oil onion opera orange orchard
    orchestra oven owl owner ox oyster package paint pair palace palm paper parade park path patient pavement pea
    peach pear pebble pen pencil people pepper physician piano picture pie pig pigeon pillow pilot pin pine pipe
    plane planet plate pleasure plough pocket poem poet poison pony porch potato powder prayer prince prison prize
    profit pudding pupil purse puzzle queen quilt rabbit radio rail rain ranch razor reason revision ribbon rice
    river road robe rocket roof room rope rose ruby rug ruler rumour saddle sail salt sand sauce school scissors sea
    season seed sergeant shadow shark shed sheep shelf shell shepherd ship shirt shoe shop shore shoulder shovel
    shower sigh silk silver singer sister skirt sky sleeve smile smoke snake snow soap soldier son song soup south
    spear spider spoon spring squirrel stable stage stair star station steam stick stomach stone storm story stove
    stranger straw stream street sugar suit summer sun supper surgeon sword table tail tailor teacher teapot tear
    teeth temple tent theatre thief thigh thing thirst thorn thread throat throne thumb thunder ticket tide tiger
    timber toe tongue tooth torch tower toy treasure tree tribe trouble trousers trumpet tune turkey uncle union
    usher valley vase vault vegetable veil velvet village vinegar violin vision voice volume voyage wage waist
    walnut war wasp watch water wave wax weather wedding west whale wheat wheel whistle widow wife window wine wing
    winter witch wolf wood wool word worker world wreath wrist yard year youth zebra zoo
    """
)
ADJECTIVES = _listed(
    """
    angry awful awkward beige bitter blue bold brave brief bright broad broken brown busy calm careful cheap clean
    clear clever cloudy coarse cold cool crooked cruel curious dark deaf dear deep dirty dry dull early easy empty
    enormous famous fierce fine flat foolish foreign fresh friendly gentle giant glad golden good grave great green
    grey handsome happy harsh heavy hollow honest huge humble hungry icy jealous jolly joyful juicy large late lazy
    light little lonely long loose loud lovely low loyal mild moist narrow nervous new noisy odd old orange pale
    peaceful plain pleasant poor proud pure purple queer quick quiet rare raw ready red rich ripe rough round royal
    rude sad scarlet secret shallow sharp shiny short shy silent simple slow small smooth soft sour square steep
    stiff strange strong stupid sudden sweet tall tame tender thick thin tired tiny ugly unusual useful usual vague
    vain vast warm weak weary wet white whole wide wild wise worthy yellow young
    """
)
VERBS = _listed(
    """
    admire admit adore allow annoy answer ask avoid bake bathe beg begin behold bend bite blame bless blow boil
    borrow break breathe bring brush build burn bury buy call carry carve catch change charge chase cheat check
    choose chop clean climb close collect command cook cough count cover cross crush cure cut deceive defend deliver
    deny describe destroy discover divide drag draw drive drop earn employ enjoy envy escape examine exchange
    explain face fear feed fetch fight fill find finish fold follow forget forgive gather give grab greet grow guard
    guess guide hate hear heat help hide hire hold hunt hurry ignore imagine invite join judge jump keep kick kill
    kiss knock know laugh lead learn leave lend lift light like lock lose love make mark marry measure meet mend
    mention miss mix mount move need notice obey offer open order own paint pass pay peel pick pinch plant play
    please polish pour praise prefer promise protect pull punish push raise reach read receive refuse regret
    remember repair reply rescue respect ring risk rob roast rub rule save scold scratch search see sell send serve
    sew shake share shave shoot show shut sing smash smell snatch spare spend spill split spoil spread squeeze steal
    stir stop strike study surprise swallow sweep take taste teach tear tease thank think throw tie touch trade
    train trust turn understand unite use value visit want warn wash waste watch wear weigh welcome whip win wipe
    wish wonder worship wrap write
    """
)
NAMES = _listed(
    """
    Agatha Arthur Beatrice Benjamin Charlotte Cuthbert Dorothy Edith Edward Eleanor Ethel Eugene Evelyn Florence
    Francis Frederick Geoffrey George Gertrude Gilbert Giles Gwyneth Harriet Hugh Irene Isaac Isabel Jacob Jane Joan
    John Joshua Joyce Judith Julia Keith Kenneth Leah Leonard Louise Lucy Margaret Martha Matthew Maude Michael
    Millicent Nathaniel Oliver Olivia Owen Paul Percy Philip Phoebe Quentin Rachel Raymond Robert Roger Rosalind
    Rupert Ruth Samuel Sarah Sheila Simon Sophia Stephen Theodore Thomas Timothy Ursula Victor Vincent Violet Walter
    Wilfred William Yolanda Zachary Zoe
    """
)
ARTICLES = _listed(
    """
    the the the a our your their his her my this that every some no another each one
    """
)
MODALS = _listed(
    """
    will would could should might must may can did does
    """
)
SUBJECTS = _listed(
    """
    I | you | we | they | he | she | nobody | everyone | somebody | hardly anyone | all of us | neither of them |
    those who listen
    """,
    parted="|",
)
TIMES = _listed(
    """
    before noon | after supper | every Thursday | in the early spring | at half past seven | once a month | long ago
    | all day | yesterday | for the first time | until the third of July | on Wednesday morning | at midnight | by
    and by | again and again | in eighteen sixty five | twice | in the year of the flood | tomorrow | when the sun
    rose | as soon as possible | last February | for fourteen hours
    """,
    parted="|",
)
PLACES = _listed(
    """
    in | under | behind | near | through | beyond | beside | against | above | between the walls of | across | on |
    without | with | from
    """,
    parted="|",
)
JOINTS = _listed(
    """
    and | but | because | although | while | so | if | until | for | unless | yet | or
    """,
    parted="|",
)
QUESTIONS = _listed(
    """
    why | how | when | where | who says that | do you think that
    """,
    parted="|",
)


def passage(rng: np.random.Generator, *, letters: int) -> str:
    """Return sentences that have `letters` letters or more together."""
    said = ""
    while len(said) < letters:
        said += " " * bool(said) + sentence(rng)
    return said


def sentence(rng: np.random.Generator) -> str:
    """Return a sentence: one of the embedded corpus's, or one by a pattern."""
    if rng.random() < OWN:
        return SENTENCES[rng.integers(len(SENTENCES))]
    kind, clause = rng.random(), _clause(rng)
    if kind < 0.15:
        return _capital(f"{_of(rng, ('which', 'whose', 'what'))} {clause.split(' ', 1)[1]}?")
    if kind < 0.25:
        return _capital(f"{_of(rng, QUESTIONS)} {clause}?")
    if kind < 0.55:
        clause += f", {_of(rng, JOINTS)} {_clause(rng)}"
    if rng.random() < 0.3:
        clause += f" {_of(rng, TIMES).strip()}"
    return _capital(f"{clause}.")


def read_texts(path: Path) -> tuple[str, ...]:
    """Read text to speak, a sentence or a few on each line; empty lines only separate.

    Raises:
        InputError: the file cannot be read as UTF-8, has no lines, or a line of more than 300 letters.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: no text ({error}); give UTF-8, a sentence on each line") from error
    if long := next((n for n, line in enumerate(lines, 1) if len(line) > LONGEST), None):
        length = len(lines[long - 1])
        raise InputError(f"{path}, line {long}: {length} letters, {LONGEST} are the most; break it between sentences")
    if not (texts := tuple(filter(None, lines))):
        raise InputError(f"{path}: 0 lines of text; give one or more")
    return texts


def _clause(rng: np.random.Generator) -> str:
    kind = rng.random()
    subject = _of(rng, NAMES) if kind < 0.2 else _of(rng, SUBJECTS) if kind < 0.5 else _thing(rng)
    clause = f"{subject} {_of(rng, MODALS)} {_of(rng, VERBS)} {_thing(rng)}"
    if rng.random() < 0.5:
        clause += f" {_of(rng, PLACES)} {_thing(rng)}"
    return clause


def _thing(rng: np.random.Generator) -> str:
    words = [_of(rng, ARTICLES), *([_of(rng, ADJECTIVES)] if rng.random() < 0.5 else []), _of(rng, NOUNS)]
    if words[0] == "a" and words[1][0] in "aeiou":
        words[0] = "an"
    return " ".join(words)


def _of(rng: np.random.Generator, words: tuple[str, ...]) -> str:
    return words[rng.integers(len(words))]


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
