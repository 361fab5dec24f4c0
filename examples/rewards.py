"""A reward of one's own, for answers that are words: the right colour, a wrong colour, or no colour at all.

In config.yaml:

    train_sets:
      colours: {file: {path: examples/colours_train.jsonl}, question: question, gold: {field: answer},
                reward: "examples/rewards.py:colour"}

The number is the training reward. pass@k counts an answer as solved from `solved_at` on, 1.0 if none is given.
"""

COLOURS = {"red", "green", "blue", "black", "white", "yellow"}


def colour(answer: str, gold: str) -> float:
    """Returns 1.0 for the right colour, 0.2 for another colour and 0.0 for any other text."""
    said = answer.strip().lower()
    if said == gold:
        return 1.0
    return 0.2 if said in COLOURS else 0.0
