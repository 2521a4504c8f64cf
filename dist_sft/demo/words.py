"""The small world that the demo's questions are about."""

CATEGORIES = {
    "animal": ("dog", "cat", "horse", "mouse", "tiger", "whale", "wolf", "frog"),
    "fruit": ("apple", "pear", "plum", "grape", "lemon", "cherry", "mango", "fig"),
    "tool": ("hammer", "saw", "drill", "axe", "rake", "spade", "brush", "knife"),
}

OPPOSITES = (("hot", "cold"), ("big", "small"), ("fast", "slow"), ("up", "down"), ("old", "young"), ("full", "empty"))

NOUNS = tuple(word for words in CATEGORIES.values() for word in words)
ADJECTIVES = tuple(word for pair in OPPOSITES for word in pair)
WORDS = NOUNS + ADJECTIVES
NUMBERS = range(1, 21)
