"""BERT's lower-casing tokeniser, as much of it as plain English sentences need.

Source: WordPiece as in BERT: split at spaces and punctuation, then the longest known piece first.
"""
import re
import unicodedata

import numpy as np


class Tokeniser:
    def __init__(self, vocabulary: str):
        self.ids = {piece: i for i, piece in enumerate(vocabulary.splitlines())}

    def pieces(self, word: str):
        out, start = [], 0
        while start < len(word):
            for end in range(len(word), start, -1):
                piece = ("##" if start else "") + word[start:end]
                if piece in self.ids:
                    out.append(self.ids[piece])
                    start = end
                    break
            else:
                return [self.ids["[UNK]"]]
        return out

    def inputs(self, text: str, tokens: int) -> dict:
        """The three inputs of a BERT, each [1, tokens] int64, padded."""
        plain = "".join(c for c in unicodedata.normalize("NFD", text.lower()) if unicodedata.category(c) != "Mn")
        ids = [i for word in re.findall(r"\w+|[^\w\s]", plain) for i in self.pieces(word)][: tokens - 2]
        ids = [self.ids["[CLS]"], *ids, self.ids["[SEP]"]]
        row, mask = np.zeros((1, tokens), np.int64), np.zeros((1, tokens), np.int64)
        row[0, : len(ids)], mask[0, : len(ids)] = ids, 1
        return {"input_ids": row, "attention_mask": mask, "token_type_ids": np.zeros((1, tokens), np.int64)}


def embedding(hidden: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Mean over the real tokens, unit length: the sentence embedding. hidden [1, tokens, width]."""
    m = mask[0, :, None].astype(np.float64)
    v = (hidden[0].astype(np.float64) * m).sum(axis=0) / m.sum()
    return v / np.linalg.norm(v)
