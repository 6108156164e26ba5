"""Tokenizers of the tiny backbones, trained on what scenes say: every word of theirs is one token, any other text
survives.

The language models' is a byte-level BPE (the 256 bytes are in the vocabulary, so nothing is unknown) that lower-cases
and splits digits and punctuation one by one; a leading space is part of a token and is added where it is missing, so a
word at the start of a text is the same token as in its middle. The tag encoder's is BERT's WordPiece.
"""

from collections import Counter
from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import BertTokenizerFast, PreTrainedTokenizerFast

SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", "<unk>", "<image>")

#: Renders a chat as the language models were pretrained: "<image> question : what color is the square ? answer : red".
#: Text parts of a user's turn are joined in their order; a system turn is plain text in front.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- set content = message['content'] -%}
{%- set parts = [{'type': 'text', 'text': content}] if content is string else content -%}
{%- set words = parts | selectattr('type', 'equalto', 'text') | map(attribute='text') | join(' ') -%}
{%- if message['role'] == 'user' -%}
{%- for part in parts if part['type'] == 'image' -%}{{ '<image>' }}{%- endfor -%}
{{ ' question : ' + words + ' answer :' }}
{%- elif message['role'] == 'assistant' -%}
{{ ' ' + words + eos_token }}
{%- else -%}
{{ ' ' + words }}
{%- endif -%}
{%- endfor -%}
"""


def train_text_tokenizer(texts: Iterable[str], encoder_decoder: bool, max_length: int) -> PreTrainedTokenizerFast:
    """The tokenizer of a tiny language model; an encoder-decoder's ends every text with </s>, as T5's does."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFC(),
            normalizers.Lowercase(),
            normalizers.Prepend(" "),
            normalizers.Replace(Regex(r"\A\s+"), " "),
        ]
    )
    pieces = r" ?\p{N}| ?\p{L}+| ?[^\s\p{L}\p{N}]|\s+(?!\S)|\s+"
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pieces), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    trainer = trainers.BpeTrainer(
        vocab_size=2048,  # far more than the words of scenes need: training ends when every word is one token
        min_frequency=2,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer=trainer)
    if encoder_decoder:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="$A </s>", pair="$A $B </s>", special_tokens=[("</s>", tokenizer.token_to_id("</s>"))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"},
        model_max_length=max_length,
        padding_side="right",
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def train_tag_tokenizer(texts: Iterable[str], max_length: int) -> BertTokenizerFast:
    """BERT's tokenizer over the words of `texts`, and all ASCII characters as pieces for every other word."""
    splitter = pre_tokenizers.BertPreTokenizer()
    words = Counter(word for text in texts for word, _ in splitter.pre_tokenize_str(text.lower()))
    characters = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    letters = [character for character in characters if character.isalnum()]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters, *("##" + letter for letter in letters)]
    vocabulary += sorted(word for word in words if len(word) > 1 and not word.isdigit())
    return BertTokenizerFast(
        vocab={token: number for number, token in enumerate(vocabulary)},
        do_lower_case=True,
        model_max_length=max_length,
    )
