"""Against tiktoken and Hugging Face's tokenizers with the same merges, on fuzzed text."""
import numpy as np
import pytest
import tiktoken
import tokenizers as hf

from llm_jax.config import experiment as config
from llm_jax.config.errors import ConfigError
from llm_jax.data.tokenizers import base, byte_level, pre_tokenization
from llm_jax.data.tokenizers.huggingface import HuggingFaceTokenizer
from tests.data.tokenizers.hf_tokenizers import END, PUBLISHED, SPECIAL_TOKENS, hugging_face


@pytest.mark.parametrize('pattern', ['gpt2', 'cl100k', 'llama3'])
def test_ids_are_those_of_tiktoken_and_tokenizers(pattern, texts, tmp_path):
  trained = byte_level.train(texts, 600, pattern)
  path = tmp_path / 'x.tiktoken'
  path.write_bytes(byte_level.dump_ranks(trained.ranks))
  ours = base.make_tokenizer(config.TiktokenFile(str(path), pattern, SPECIAL_TOKENS))
  reference = tiktoken.Encoding('r', pat_str=PUBLISHED[pattern], mergeable_ranks=trained.ranks, special_tokens={})
  library = hugging_face(trained.ranks, PUBLISHED[pattern])
  library_file = tmp_path / 'tokenizer.json'
  library.save(str(library_file))
  from_file = base.make_tokenizer(config.HuggingFaceFile(str(library_file), END))
  library.encode_special_tokens = True
  special_tokens = range(trained.vocab_size - 1, ours.vocab_size)
  assert set(ours.special_ids.values()) == set(special_tokens)
  batches = zip(ours.encode_batch(texts), from_file.encode_batch(texts), strict=True)
  for text, (ids, hf_ids) in zip(texts, batches, strict=True):
    assert ids.tolist() == ours.encode(text) == reference.encode_ordinary(text)
    assert hf_ids.tolist() == library.encode(text).ids == ids.tolist()
    assert not set(ids.tolist()) & set(special_tokens)
    assert ours.decode(ids) == from_file.decode(ids) == text
    assert ours.decode_bytes(ids) == from_file.decode_bytes(ids) == text.encode()
  assert from_file.eot == ours.eot == library.token_to_id(END) and from_file.vocab_size == ours.vocab_size


def test_library_alone_would_yield_control_ids(bpe):
  """What the Hugging Face wrapper guards against happens without it."""
  library = hugging_face(bpe.ranks, PUBLISHED['cl100k'])
  text = 'hi <|im_end|> there'
  assert library.token_to_id('<|im_end|>') in library.encode(text).ids
  library.encode_special_tokens = True
  reloaded = HuggingFaceTokenizer(library.to_str().encode(), END)  # the library does not save that setting
  assert library.token_to_id('<|im_end|>') not in reloaded.encode(text)
  assert reloaded.decode(reloaded.encode(text)) == text


def test_control_token_that_is_also_a_word():
  """A vocabulary may spell a special token as a word (Unigram, `ignore_merges`); its name in text is cut in two."""
  vocab = [('<unk>', 0.0), ('</s>', -1.0), *((c, -2.0) for c in 'ab</s>')]
  library = hf.Tokenizer(hf.models.Unigram(vocab, 0, False))
  library.add_special_tokens(['</s>'])
  ours = HuggingFaceTokenizer(library.to_str().encode(), '</s>')
  assert ours.eot == 1
  assert ours.eot not in ours.encode('a</s>b') and ours.encode('ab') == library.encode('ab').ids


@pytest.mark.parametrize('model', [
  hf.models.Unigram([('<unk>', 0.0), ('</s>', 0.0), ('a', -1.0), ('b', -1.0)], 0, False),
  hf.models.WordLevel({'<unk>': 0, '</s>': 1, 'a': 2, 'b': 3}, '<unk>')])
def test_what_a_vocabulary_cannot_spell_is_its_unknown_token(model):
  """Files mark it as special, which makes it no special token; as the end of text it is one, and no text becomes it."""
  library = hf.Tokenizer(model)
  library.pre_tokenizer = hf.pre_tokenizers.Split('', 'isolated')
  library.add_special_tokens(['<unk>', '</s>'])
  ours = HuggingFaceTokenizer(library.to_str().encode(), '</s>')
  assert ours.encode('a\u00e9b') == library.encode('a\u00e9b').ids == [2, 0, 3]
  assert ours.special_ids == {'</s>': 1} and 1 not in ours.encode('a</s>b')
  with pytest.raises(ConfigError, match='a\u00e9b.*its unknown token, another end_of_text'):
    HuggingFaceTokenizer(library.to_str().encode(), '<unk>').encode('a\u00e9b')


def test_padding_and_truncation_of_the_file_are_off(bpe):
  library = hugging_face(bpe.ranks, PUBLISHED['cl100k'])
  library.enable_truncation(3)
  library.enable_padding(length=8)
  ours = HuggingFaceTokenizer(library.to_str().encode(), END)
  assert ours.encode('a b c d e f g h i') == bpe.encode('a b c d e f g h i')


@pytest.mark.parametrize('pattern', ['gpt2', 'cl100k', 'llama3'])
def test_pieces_of_a_long_text_give_the_ids_of_the_whole(pattern, texts, monkeypatch):
  ours = byte_level.train(texts, 400, pattern)
  long = ''.join(texts[:1500])
  whole = ours._tiktoken.encode_ordinary(long)
  monkeypatch.setattr(pre_tokenization, 'PIECE', 16)
  assert len(list(byte_level.cut(long, True))) > 500
  assert ours.encode(long) == whole and ours.encode_batch([long])[0].tolist() == whole


@pytest.mark.parametrize('pattern', ['gpt2', 'cl100k', 'llama3'])
def test_a_million_of_anything(pattern, texts):
  ours = byte_level.train(texts, 300, pattern)
  for text in (' ' * 1_000_000 + 'x', '\n' * 1_000_000 + 'x', 'a' * 1_000_000, '!' * 1_000_000):
    assert ours.decode_bytes(ours.encode(text)) == text.encode()
  byte_level.train(['hello hello', ' ' * 1_000_000 + 'x'], 300, pattern)


def test_bytes(texts):
  ours = byte_level.ByteTokenizer()
  assert (ours.vocab_size, ours.eot) == (257, 256)
  for text, ids in zip(texts, ours.encode_batch(texts), strict=True):
    assert bytes(ids.tolist()) == bytes(ours.encode(text)) == text.encode() and ours.decode(ids) == text


def test_half_a_surrogate_pair_becomes_a_replacement_character(bpe):
  library = HuggingFaceTokenizer(hugging_face(bpe.ranks, PUBLISHED['cl100k']).to_str().encode(), END)
  for tokenizer in (byte_level.ByteTokenizer(), bpe, library):
    assert tokenizer.decode(tokenizer.encode('a\ud800b')) == 'a\ufffdb'


def test_ids_of_no_token_decode_to_a_replacement_character(bpe, texts):
  cl100k_like = byte_level.RankTokenizer(bpe.ranks, bpe.pattern, ('', END), END)
  assert cl100k_like.eot == bpe.eot + 1 and cl100k_like.vocab_size == bpe.vocab_size + 1
  assert cl100k_like.decode([*bpe.encode('ab'), bpe.eot, 10**6, cl100k_like.eot]) == 'ab\ufffd\ufffd' + END
  assert bpe.decode([bpe.eot]) == END


def test_fingerprints_do_not_change():
  """Pinned: another fingerprint would tokenise everything again, and refuse every checkpoint."""
  small = byte_level.RankTokenizer({bytes([i]): i for i in range(256)}, r'\w+', (END,), END)
  assert small.fingerprint == RANKS_FINGERPRINT
  assert byte_level.ByteTokenizer().fingerprint == BYTES_FINGERPRINT


RANKS_FINGERPRINT = '0512df9bb44efaca58a01c933831caf6e78f9a00d26646cc7cd21c244367a4e3'
BYTES_FINGERPRINT = 'eb929771327edd99fe6dfb8cf26e040fc71d5dcaa7e827b53681da5ab66e2954'


def test_save_and_load(bpe, texts, tmp_path, monkeypatch):
  library = HuggingFaceTokenizer(hugging_face(bpe.ranks, PUBLISHED['cl100k']).to_str().encode(), END)
  fingerprints = set()
  for i, tokenizer in enumerate([byte_level.ByteTokenizer(), bpe, library]):
    tokenizer.save(tmp_path / str(i))
    loaded = base.load_tokenizer(tmp_path / str(i))
    for field in ('fingerprint', 'vocab_size', 'eot', 'special_ids'):
      assert getattr(loaded, field) == getattr(tokenizer, field)
    both = zip(loaded.encode_batch(texts), tokenizer.encode_batch(texts), strict=True)
    assert all(np.array_equal(a, b) for a, b in both)
    fingerprints.add(loaded.fingerprint)
  assert len(fingerprints) == 3
  # The rank file is tiktoken's own format.
  from tiktoken.load import load_tiktoken_bpe
  monkeypatch.setenv('TIKTOKEN_CACHE_DIR', '')
  assert load_tiktoken_bpe(str(tmp_path / '1' / 'ranks.tiktoken')) == bpe.ranks


def test_every_change_changes_the_fingerprint(bpe):
  same = byte_level.RankTokenizer(dict(bpe.ranks), bpe.pattern, bpe.special_tokens, END)
  fewer = dict(sorted(bpe.ranks.items(), key=lambda item: item[1])[:-1])
  others = [byte_level.RankTokenizer(fewer, bpe.pattern, bpe.special_tokens, END),
            byte_level.RankTokenizer(bpe.ranks, byte_level.pattern_for('cl100k', True), bpe.special_tokens, END),
            byte_level.RankTokenizer(bpe.ranks, bpe.pattern, (END, '<|x|>'), END),
            byte_level.RankTokenizer(bpe.ranks, bpe.pattern, (END, '<|x|>'), '<|x|>')]
  assert same.fingerprint == bpe.fingerprint and len({bpe.fingerprint, *(o.fingerprint for o in others)}) == 5


def test_edited_files_are_refused(bpe, tmp_path):
  bpe.save(tmp_path)
  ranks = tmp_path / 'ranks.tiktoken'
  ranks.write_bytes(b'\n'.join(ranks.read_bytes().splitlines()[:-1]))
  with pytest.raises(ConfigError, match='changed since it was saved'):
    base.load_tokenizer(tmp_path)
  with pytest.raises(ConfigError, match='not a saved tokenizer'):
    base.load_tokenizer(tmp_path / 'nowhere')


def test_bad_configurations(bpe, tmp_path):
  path = tmp_path / 'x.tiktoken'
  path.write_bytes(byte_level.dump_ranks(bpe.ranks))
  for wrong, field in [
      (config.TiktokenFile(str(tmp_path / 'none')), 'tokenizer.path'),
      (config.TiktokenFile(str(path), '(('), 'tokenizer.pattern'),
      (config.TiktokenFile(str(path), r'\w+', split_digits=True), 'tokenizer.split_digits'),
      (config.TiktokenFile(str(path), special_tokens=()), 'tokenizer.special_tokens'),
      (config.TiktokenFile(str(path), special_tokens=('a', 'a')), 'tokenizer.special_tokens'),
      (config.TiktokenFile(str(path), end_of_text='<|x|>'), 'tokenizer.end_of_text'),
      (config.HuggingFaceFile(str(tmp_path / 'none')), 'tokenizer.path'),
      (config.HuggingFaceFile(str(path)), 'tokenizer.path'),
      (config.BPE(), 'tokenizer')]:
    with pytest.raises(ConfigError) as caught:
      base.make_tokenizer(wrong)
    assert caught.value.field == field and '\n' not in str(caught.value)
  with pytest.raises(ConfigError, match='no text'):
    base.make_tokenizer(config.BPE(), lambda: iter(()))
  library = tmp_path / 'tokenizer.json'
  library.write_text(hugging_face(bpe.ranks, PUBLISHED['cl100k']).to_str())
  for name in ('a', '<|nothing|>'):
    with pytest.raises(ConfigError, match='special token|not in the vocabulary'):
      base.make_tokenizer(config.HuggingFaceFile(str(library), name))


def test_check_vocabulary(bpe):
  base.check_vocabulary(bpe, bpe.vocab_size)
  with pytest.raises(ConfigError, match=rf'model.vocab_size = 499: .*use {bpe.vocab_size} or more'):
    base.check_vocabulary(bpe, bpe.vocab_size - 1)


def test_bytes_per_token(bpe, texts):
  sizes = base.bytes_per_token(bpe)
  assert sizes[bpe.eot] == 0
  assert all(sizes[bpe.encode(text)].sum() == len(text.encode()) for text in texts[1:200])


def test_bytes_per_token_of_byte_fallback():
  """SentencePiece's way with what it has no token for: a token a byte, several of them a character."""
  vocab = {'</s>': 0, **{f'<0x{byte:02X}>': 1 + byte for byte in range(256)}, '\u2581': 257, 'a': 258}
  library = hf.Tokenizer(hf.models.BPE(vocab, [], byte_fallback=True))
  library.pre_tokenizer = hf.pre_tokenizers.Metaspace(prepend_scheme='never')
  library.decoder = hf.decoders.Sequence([hf.decoders.Replace('\u2581', ' '), hf.decoders.ByteFallback(),
                                          hf.decoders.Fuse(), hf.decoders.Strip(' ', 1, 0)])
  library.add_special_tokens(['</s>'])
  ours = HuggingFaceTokenizer(library.to_str().encode(), '</s>')
  for text in ('a a', 'a \u6f22\u5b57', '\u00e9\n a', '\U0001f600'):
    ids = ours.encode(text)
    assert ours.decode_bytes(ids) == text.encode() and base.bytes_per_token(ours)[ids].sum() == len(text.encode())
  assert ours.decode_bytes([1 + 0xE6]) == b'\xe6'


def test_bytes_per_token_where_a_first_space_is_dropped(tmp_path):
  """SentencePiece's way: a token decoded alone is shorter than in a text."""
  words = {'<s>': 0, '\u2581the': 1, '\u2581cat': 2, '\u2581sat': 3}
  library = hf.Tokenizer(hf.models.WordLevel(words, unk_token='<s>'))
  library.pre_tokenizer, library.decoder = hf.pre_tokenizers.Metaspace(), hf.decoders.Metaspace()
  library.add_special_tokens(['<s>'])
  library.save(str(tmp_path / 'tokenizer.json'))
  tokenizer = base.make_tokenizer(config.HuggingFaceFile(str(tmp_path / 'tokenizer.json'), '<s>'))
  assert base.bytes_per_token(tokenizer).tolist() == [0, 4, 4, 4]  # ' the'
