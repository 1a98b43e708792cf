"""A word-level tokenizer for starters: one id a word, in the file format of transformers."""

from collections.abc import Sequence

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

BOS, EOS, PAD, UNK = "<s>", "</s>", "<pad>", "<unk>"


def word_tokenizer(words: Sequence[str], special: Sequence[str], spare: int = 0) -> PreTrainedTokenizerFast:
    """Ids in this order: pad, bos, eos, unk, ``special``, the sorted ``words``, ``spare`` unused ids.

    Text is lower-cased and split at spaces and punctuation; unknown words become ``<unk>``.
    """
    marks = [PAD, BOS, EOS, UNK, *special]
    extra = [f"<spare{i}>" for i in range(spare)]
    vocabulary = {word: i for i, word in enumerate([*marks, *sorted(set(words)), *extra])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNK))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex(r"[^\w]"), "isolated")]
    )
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, vocabulary[BOS])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        unk_token=UNK,
        additional_special_tokens=list(special),
        clean_up_tokenization_spaces=False,
    )
