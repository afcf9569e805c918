/* Tokenizers: vocabularies, merging, files of all kinds, added tokens, training. */
#include "support.h"

#include "text/bpe.h"
#include "text/byte_characters.h"
#include "text/tokenizer.h"
#include "text/train.h"

using namespace support;

namespace {

struct CloseTokenizer {
    void operator()(loom_tokenizer *t) const {
        loom_tokenizer_close(t);
    }
};
using Tokenizer = std::unique_ptr<loom_tokenizer, CloseTokenizer>;
using Ids = std::vector<int32_t>;

Tokenizer open_tokenizer(const std::string &path, const char *pattern = nullptr) {
    loom_tokenizer *t = nullptr;
    loom_error error = {""};
    EXPECT_TRUE(loom_tokenizer_open(&t, path.c_str(), pattern, &error)) << error.message;
    return Tokenizer(t);
}

std::string refusal(const std::string &path, const char *pattern = nullptr) {
    loom_tokenizer *t = nullptr;
    loom_error error = {""};
    EXPECT_FALSE(loom_tokenizer_open(&t, path.c_str(), pattern, &error));
    EXPECT_EQ(t, nullptr);
    return error.message;
}

Ids encode(const loom_tokenizer *t, const std::string &text, loom_special special = LOOM_SPECIAL_TEXT) {
    loom_error error = {""};
    loom_encoder *encoder = loom_encoder_open(t, special, &error);
    Ids ids(loom_encode_room(t, text.size()));
    size_t n = 0;
    EXPECT_TRUE(loom_encode(encoder, text.data(), text.size(), ids.data(), &n, &error)) << error.message;
    loom_encoder_close(encoder);
    ids.resize(n);
    return ids;
}

std::string decode(const loom_tokenizer *t, const Ids &ids) {
    std::string text;
    for (const int32_t id : ids) {
        const loom_token_bytes token = loom_vocabulary_bytes(t->vocabulary, id);
        text.append((const char *)token.bytes, token.n);
    }
    return text;
}

Ids numbers(const std::string &line) {
    std::istringstream in(line);
    Ids ids;
    for (int32_t id; in >> id;) ids.push_back(id);
    return ids;
}

std::string data(const std::string &name) {
    return "test/data/tokenizers/" + name;
}

/* ------------------------------------------------------------------------------------------------------------- merging */

/* A vocabulary of a, b and c: "ab" merges first, then "abc", "bc", "aa". */
struct Letters {
    loom_vocabulary *v = loom_vocabulary_open();
    Letters() {
        const char *const tokens[] = {"a", "b", "c", "ab", "abc", "bc", "aa"};
        for (int32_t i = 0; i < 7; i++) loom_vocabulary_add(v, i, tokens[i], strlen(tokens[i]));
        loom_vocabulary_merge_by_rank(v);
    }
    ~Letters() {
        loom_vocabulary_close(v);
    }
    Ids merge(const std::string &text) const {
        Ids ids;
        for (const char c : text) ids.push_back(c - 'a');
        loom_bpe_scratch scratch = {};
        size_t left = 0;
        EXPECT_TRUE(loom_bpe_merge(v, ids.data(), ids.size(), &scratch, &left));
        loom_bpe_free(&scratch);
        ids.resize(left);
        return ids;
    }
};

/* The definition: of all neighbours that merge those of the lowest rank, and of these the first. */
Ids merge_slowly(const loom_vocabulary *v, Ids ids) {
    for (;;) {
        size_t best = ids.size();
        for (size_t i = 0; i + 1 < ids.size(); i++) {
            const uint32_t rank = loom_vocabulary_merge(v, ids[i], ids[i + 1]).rank;
            if (rank != LOOM_NO_MERGE &&
                (best == ids.size() || rank < loom_vocabulary_merge(v, ids[best], ids[best + 1]).rank))
                best = i;
        }
        if (best == ids.size()) return ids;
        ids[best] = loom_vocabulary_merge(v, ids[best], ids[best + 1]).id;
        ids.erase(ids.begin() + (ptrdiff_t)best + 1);
    }
}

TEST(Bpe, MergesTheLowestRankFirstAndOfTheseTheFirst) {
    const Letters letters;
    EXPECT_EQ(letters.merge("abc"), Ids({4}));
    EXPECT_EQ(letters.merge("bca"), Ids({5, 0}));
    EXPECT_EQ(letters.merge("aaa"), Ids({6, 0}));
    EXPECT_EQ(letters.merge("aabc"), Ids({0, 4}));
    EXPECT_EQ(letters.merge(""), Ids());
    EXPECT_EQ(letters.merge("c"), Ids({2}));
}

TEST(Bpe, ShortAndLongPiecesMergeAlike) {
    const Letters letters;
    std::mt19937 random(1);
    for (int n = 1; n < 400; n += n < 100 ? 1 : 37) {
        std::string text;
        Ids ids;
        for (int i = 0; i < n; i++) {
            text += (char)('a' + random() % 3);
            ids.push_back(text.back() - 'a');
        }
        EXPECT_EQ(letters.merge(text), merge_slowly(letters.v, ids)) << text;
    }
}

TEST(Bpe, AMillionOfOneLetterIsNoTrouble) {
    const Letters letters;
    EXPECT_EQ(letters.merge(std::string(1000001, 'a')).size(), 500001u);
}

/* ------------------------------------------------------------------------------------------------------------ chunks */

/* Where a text may be cut whatever follows: at ends of pieces of the whole. */
TEST(Chunks, EndWherePiecesEnd) {
    const std::string words[] = {"it", "'s", " ", "\n", "  ", "A", "b", "/", "!", "1", "\r\n", "é", "中"};
    std::mt19937 random(3);
    for (int round = 0; round < 200; round++) {
        std::string text;
        for (int i = 0; i < 60; i++) text += words[random() % (sizeof words / sizeof *words)];
        const uint8_t *bytes = (const uint8_t *)text.data();
        for (const loom_split_pattern pattern :
             {LOOM_SPLIT_GPT2, LOOM_SPLIT_CL100K, LOOM_SPLIT_LLAMA3, LOOM_SPLIT_QWEN2, LOOM_SPLIT_O200K}) {
            std::set<size_t> ends;
            for (size_t at = 0; at < text.size();) ends.insert(at = loom_split_next(pattern, bytes, text.size(), at));
            for (size_t n = 0; n <= text.size(); n++) {
                const size_t end = loom_split_safe_end(bytes, n);
                EXPECT_TRUE(end == 0 || ends.count(end)) << text << ": " << n;
            }
        }
    }
    EXPECT_EQ(loom_split_safe_end((const uint8_t *)"one two three", 13), 7u);
    EXPECT_EQ(loom_split_safe_end((const uint8_t *)"one two ", 8), 3u);
    EXPECT_EQ(loom_split_safe_end((const uint8_t *)"one", 3), 0u);
}

/* --------------------------------------------------------------------------------------------------------- characters */

TEST(ByteCharacters, AreGpt2sAndComeBack) {
    const loom_byte_characters characters = loom_byte_characters_make();
    EXPECT_STREQ(characters.of['a'], "a");
    EXPECT_STREQ(characters.of[' '], "Ġ");
    EXPECT_STREQ(characters.of['\n'], "Ċ");
    EXPECT_STREQ(characters.of[0xAD], "Ń");
    for (int byte = 0; byte < 256; byte++) {
        uint8_t back[3];
        size_t n;
        ASSERT_TRUE(loom_bytes_of_characters(characters.of[byte], back, &n));
        EXPECT_EQ(n, 1u);
        EXPECT_EQ(back[0], byte);
    }
    for (const char *other : {" ", "\n", "ń\u0144", "▁", "\xC3", "\xFF", "é\x80"}) {
        uint8_t back[8];
        size_t n;
        EXPECT_FALSE(loom_bytes_of_characters(other, back, &n)) << other;
    }
}

/* --------------------------------------------------------------------------------------------------------------- peers */

/* Vocabularies, texts and ids of tokenizers and of tiktoken (dev/torch/compare_text.py --golden). */
TEST(Tokenizer, HasTheIdsOfItsPeers) {
    for (const std::string pattern : {"gpt2", "cl100k", "o200k"}) {
        SCOPED_TRACE(pattern);
        const std::string text = read_file(data("text.txt"));
        std::istringstream lines(read_file(data(pattern + ".ids")));
        std::string of_tokenizers, of_tiktoken;
        std::getline(lines, of_tokenizers);
        std::getline(lines, of_tiktoken);
        const Tokenizer by_json = open_tokenizer(data(pattern + ".json"));
        const Tokenizer by_ranks = open_tokenizer(data(pattern + ".tiktoken"), pattern.c_str());
        EXPECT_EQ(encode(by_json.get(), text), numbers(of_tokenizers));
        EXPECT_EQ(encode(by_ranks.get(), text), numbers(of_tiktoken));
        EXPECT_EQ(decode(by_json.get(), encode(by_json.get(), text)), text);
    }
}

TEST(Tokenizer, BytesThatAreNoUtf8ComeBack) {
    std::mt19937 random(2);
    const Tokenizer t = open_tokenizer(data("o200k.json"));
    for (int n = 0; n < 300; n++) {
        std::string text;
        for (int i = 0; i < n; i++) text += (char)random();
        EXPECT_EQ(decode(t.get(), encode(t.get(), text)), text);
    }
}

/* GPT-2's own merges, which are not the project's to give away: their ids are known from many places. */
TEST(Tokenizer, HasGpt2sIds) {
    const char *merges = getenv("LOOM_TEST_GPT2_MERGES");
    if (!merges) GTEST_SKIP() << "LOOM_TEST_GPT2_MERGES names no merges.txt";
    const Tokenizer t = open_tokenizer(merges);
    EXPECT_EQ(loom_vocabulary_size(t->vocabulary), 50257);
    EXPECT_EQ(encode(t.get(), "Hello, I'm a language model,"), Ids({15496, 11, 314, 1101, 257, 3303, 2746, 11}));
    EXPECT_EQ(encode(t.get(), "<|endoftext|>", LOOM_SPECIAL_ENCODE), Ids({50256}));
}

/* ------------------------------------------------------------------------------------------------------- added tokens */

/* A tokenizer.json of bytes alone, and these added tokens. */
std::string bytes_json(const std::string &added, const std::string &model = "", const std::string &pre = "") {
    const loom_byte_characters characters = loom_byte_characters_make();
    std::string vocabulary;
    for (int byte = 0; byte < 256; byte++) {
        const std::string c = characters.of[byte];
        vocabulary += (byte ? ", \"" : "\"") + (c == "\"" || c == "\\" ? "\\" + c : c) + "\": " + std::to_string(byte);
    }
    return "{\"added_tokens\": [" + added + "], \"normalizer\": null, \"pre_tokenizer\": " +
           (pre.empty() ? "{\"type\": \"ByteLevel\", \"add_prefix_space\": false}" : pre) +
           ", \"model\": {\"type\": \"BPE\", " + model + "\"vocab\": {" + vocabulary + "}, \"merges\": []}}";
}

TEST(Tokenizer, AddedTokensAreFoundAsTheirFieldsSay) {
    const TemporaryDirectory place;
    write_file(
        place.at("tokenizer.json"),
        bytes_json("{\"id\": 300, \"content\": \"<x>\", \"special\": true}, {\"id\": 301, \"content\": \"<x>y\"}, "
                   "{\"id\": 302, \"content\": \"<l>\", \"lstrip\": true}, {\"id\": 303, \"content\": \"<r>\", "
                   "\"rstrip\": true}, {\"id\": 304, \"content\": \"word\", \"single_word\": true}"));
    const Tokenizer t = open_tokenizer(place.path().string());
    const auto ids = [&](const std::string &text) { return encode(t.get(), text, LOOM_SPECIAL_ENCODE); };
    EXPECT_EQ(ids("a<x>b"), Ids({'a', 300, 'b'}));
    EXPECT_EQ(ids("<x>y<x>"), Ids({301, 300})) << "the longest first";
    EXPECT_EQ(ids("a \n<l> b"), Ids({'a', 302, ' ', 'b'}));
    EXPECT_EQ(ids("a <r>\t b"), Ids({'a', ' ', 303, 'b'}));
    EXPECT_EQ(ids("<r> <l>"), Ids({303, 302}));
    EXPECT_EQ(ids("word"), Ids({304}));
    EXPECT_EQ(ids("(word)"), Ids({'(', 304, ')'}));
    EXPECT_EQ(ids("words").size(), 5u);
    EXPECT_EQ(ids("\u3000<l>"), Ids({302})) << "of three bytes";
    EXPECT_EQ(ids("_word").size(), 5u);
    EXPECT_EQ(encode(t.get(), "<x>"), Ids({'<', 'x', '>'}));
    loom_error error;
    loom_encoder *strict = loom_encoder_open(t.get(), LOOM_SPECIAL_ERROR, &error);
    Ids room(loom_encode_room(t.get(), 4));
    size_t n;
    EXPECT_FALSE(loom_encode(strict, "a<x>", 4, room.data(), &n, &error));
    EXPECT_EQ(std::string(error.message), "byte 1 of the text begins the token <x>, which texts are not to have");
    loom_encoder_close(strict);
}

TEST(Tokenizer, AStretchMayGetASpaceBeforeIt) {
    const TemporaryDirectory place;
    write_file(place.at("tokenizer.json"),
               bytes_json("{\"id\": 300, \"content\": \"<x>\"}", "", "{\"type\": \"ByteLevel\"}"));
    const Tokenizer t = open_tokenizer(place.path().string());
    EXPECT_EQ(encode(t.get(), "a<x>b<x> c", LOOM_SPECIAL_ENCODE), Ids({' ', 'a', 300, ' ', 'b', 300, ' ', 'c'}));
    EXPECT_EQ(encode(t.get(), ""), Ids());
}

/* --------------------------------------------------------------------------------------------------------------- files */

TEST(Tokenizer, ReadsMergesInEveryForm) {
    const TemporaryDirectory place;
    const std::string lines = "h e\nl l\nhe ll\nhell o\n";
    for (const std::string &text :
         std::vector<std::string>{lines, "#version: 0.2\n" + lines, "#version: 0.2\r\nh e\r\nl l\r\nhe ll\r\nhell o",
                                  lines.substr(0, lines.size() - 1)}) {
        write_file(place.at("vocab.bpe"), text);
        const Tokenizer t = open_tokenizer(place.at("vocab.bpe"));
        EXPECT_EQ(loom_vocabulary_size(t->vocabulary), 256 + 4 + 1);
        EXPECT_EQ(encode(t.get(), "hello"), Ids({259}));
        EXPECT_EQ(decode(t.get(), {260}), "<|endoftext|>");
    }
}

TEST(Tokenizer, RefusesWhatItDoesNotKnow) {
    const TemporaryDirectory place;
    const std::string file = place.at("tokenizer.json");
    const auto says = [&](const std::string &text, const std::string &what) {
        write_file(file, text);
        const std::string message = refusal(file);
        EXPECT_NE(message.find(what), std::string::npos) << message;
        EXPECT_NE(message.find("tokenizer.json"), std::string::npos) << message;
    };
    const std::string good = bytes_json("");
    std::string json = good;
    says(json.replace(json.find("\"normalizer\": null"), 18, "\"normalizer\": {\"type\": \"NFC\"}"), "normalizer NFC");
    json = good;
    says(json.replace(json.find("\"BPE\""), 5, "\"Unigram\""), "Unigram");
    says(bytes_json("", "", "{\"type\": \"Metaspace\"}"), "Metaspace");
    says(bytes_json("", "", "null"), "its pre-tokenizer is");
    json = good;
    says(json.replace(json.find("\"pre_tokenizer\""), 15, "\"no_tokenizer\""), "its pre-tokenizer is");
    says(bytes_json("", "",
                    "{\"type\": \"Sequence\", \"pretokenizers\": [{\"type\": \"Split\", \"pattern\": {\"Regex\": "
                    "\"x+\"}, \"behavior\": \"Isolated\"}, {\"type\": \"ByteLevel\", \"use_regex\": false}]}"),
         "x+");
    says(bytes_json("", "\"dropout\": 0.1, "), "dropout");
    says(bytes_json("{\"id\": -1, \"content\": \"<x>\"}"), "\"id\"");
    says(bytes_json("{\"id\": 300, \"content\": \"\"}"), "300");
    json = good;
    says(json.replace(json.find("\"a\": 97"), 7, "\"▁\": 97"), "no byte-level vocabulary");
    json = good;
    says(json.replace(json.find("\"a\": 97"), 7, "\"ab\": 97"), "byte 0x61");
    json = good;
    says(json.replace(json.find("\"a\": 97"), 7, "\"a\": 98"), "two tokens have id 98");
    json = good;
    says(json.replace(json.find("\"merges\": []"), 12, "\"merges\": [\"a b\"]"), "merge 1");
    says("{\"a\": 1}", "merges.txt");
    says("{", "not valid JSON");
    says(std::string("h e\n\0l l\n", 9), "zero bytes");
    write_file(file, good);
    EXPECT_NE(refusal(file, "o200k").find("--pattern"), std::string::npos);
    says("no merges here", "merge 1");
    says("YQ== 0\nYg== 0\n", "line 2");
    says("YQ== 0\nYg= 1\n", "line 2");
    says("YQ== 0\nYg== 1\n", "2 ranks, as no public vocabulary");
}

/* ------------------------------------------------------------------------------------------------------------ training */

Tokenizer train(const std::string &text, int32_t vocab_size) {
    loom_piece_counts *counts = loom_piece_counts_open(LOOM_SPLIT_GPT2);
    EXPECT_TRUE(loom_piece_counts_add(counts, text.data(), text.size()));
    const loom_bpe_training training = {vocab_size, 0};
    loom_tokenizer *t = nullptr;
    loom_error error = {""};
    EXPECT_TRUE(loom_bpe_train(&t, counts, &training, &error)) << error.message;
    loom_piece_counts_close(counts);
    return Tokenizer(t);
}

TEST(BpeTraining, MergesWhatIsMostFrequent) {
    const Tokenizer t = train("aaab aaab ab", 260);
    EXPECT_EQ(decode(t.get(), {0}), "<|endoftext|>");
    EXPECT_EQ(decode(t.get(), {257}), "aa") << "4 times, ' a' and 'ab' 3 times";
    EXPECT_EQ(loom_vocabulary_size(t->vocabulary), 260);
    const Tokenizer all = train("ab", 1000);
    EXPECT_EQ(loom_vocabulary_size(all->vocabulary), 258) << "no pair is left";
    EXPECT_EQ(loom_vocabulary_size(train("", 1000)->vocabulary), 257);
}

} // namespace
