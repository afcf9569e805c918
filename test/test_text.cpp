/* The pre-tokenizer: each clause of each pattern by hand, and all of them against PCRE2 on random text, where the
 * machine has that library. */
#include "text/split.h"
#include "text/unicode.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include <dlfcn.h>

namespace {

const loom_split_pattern all_patterns[] = {LOOM_SPLIT_GPT2, LOOM_SPLIT_CL100K, LOOM_SPLIT_LLAMA3, LOOM_SPLIT_QWEN2,
                                           LOOM_SPLIT_O200K};

/* --------------------------------------------------------------------------------------------------------- scaffold */

/* The ends of a text's pieces. The text lies in memory of its exact size: sanitizers see what is read beyond it. */
std::vector<size_t> ends(loom_split_pattern pattern, const std::string &text) {
    const std::unique_ptr<uint8_t[]> copy(new uint8_t[text.size()]);
    std::copy(text.begin(), text.end(), copy.get());
    std::vector<size_t> ends;
    for (size_t at = 0; at < text.size();) {
        const size_t end = loom_split_next(pattern, copy.get(), text.size(), at);
        if (end <= at || end > text.size()) {
            ADD_FAILURE() << "a piece from " << at << " to " << end;
            break;
        }
        ends.push_back(at = end);
    }
    return ends;
}

/* Pieces with bars between them. */
std::string cut(loom_split_pattern pattern, const std::string &text) {
    std::string out;
    size_t begin = 0;
    for (size_t end : ends(pattern, text)) {
        if (begin > 0) out += '|';
        out += text.substr(begin, end - begin);
        begin = end;
    }
    return out;
}

/* The text is the expected one without its bars. */
void expect_cut(loom_split_pattern pattern, const std::string &expected) {
    std::string text = expected;
    text.erase(std::remove(text.begin(), text.end(), '|'), text.end());
    EXPECT_EQ(cut(pattern, text), expected) << "pattern " << pattern;
}

void expect_cut(const std::vector<loom_split_pattern> &patterns, const std::string &expected) {
    for (loom_split_pattern pattern : patterns) expect_cut(pattern, expected);
}

const std::vector<loom_split_pattern> all(std::begin(all_patterns), std::end(all_patterns));
const std::vector<loom_split_pattern> of_cl100k = {LOOM_SPLIT_CL100K, LOOM_SPLIT_LLAMA3, LOOM_SPLIT_QWEN2};
const std::vector<loom_split_pattern> later = {LOOM_SPLIT_CL100K, LOOM_SPLIT_LLAMA3, LOOM_SPLIT_QWEN2,
                                               LOOM_SPLIT_O200K};

std::string repeated(const std::string &part, size_t n) {
    std::string out;
    while (n-- > 0) out += part;
    return out;
}

std::string utf8(uint32_t point) {
    const auto tail = [&](int shift) { return (char)(0x80 | (point >> shift & 0x3F)); };
    if (point < 0x80) return {(char)point};
    if (point < 0x800) return {(char)(0xC0 | point >> 6), tail(0)};
    if (point < 0x10000) return {(char)(0xE0 | point >> 12), tail(6), tail(0)};
    return {(char)(0xF0 | point >> 18), tail(12), tail(6), tail(0)};
}

/* ---------------------------------------------------------------------------------------------------------- classes */

/* How many code points of each class tokenizers and tiktoken know (dev/torch/compare_split.py asks them). */
TEST(Unicode, HasAsManyCharactersOfEachClassAsThePeers) {
    std::map<unsigned, int> found;
    for (uint32_t point = 0; point < LOOM_UNICODE_POINTS; point++) found[loom_unicode_class(point)]++;
    found.erase(0);
    const std::map<unsigned, int> peers = {{LOOM_CLASS_LU, 1858}, {LOOM_CLASS_LL, 2258},   {LOOM_CLASS_LT, 31},
                                           {LOOM_CLASS_LM, 404},  {LOOM_CLASS_LO, 136477}, {LOOM_CLASS_M, 2501},
                                           {LOOM_CLASS_N, 1911},  {LOOM_CLASS_S, 25}};
    EXPECT_EQ(found, peers);
}

TEST(Unicode, KnowsCharactersOfWhichVersionsAndEnginesDiffer) {
    const std::map<uint32_t, unsigned> expected = {{'A', LOOM_CLASS_LU},
                                                   {'z', LOOM_CLASS_LL},
                                                   {0x01C5, LOOM_CLASS_LT},
                                                   {0x02B0, LOOM_CLASS_LM},
                                                   {0x4E00, LOOM_CLASS_LO},
                                                   {0x00AA, LOOM_CLASS_LO},
                                                   {0x0301, LOOM_CLASS_M},
                                                   {0x0903, LOOM_CLASS_M},
                                                   {0x20DD, LOOM_CLASS_M},
                                                   {'7', LOOM_CLASS_N},
                                                   {0x00BD, LOOM_CLASS_N},
                                                   {0x2167, LOOM_CLASS_N},
                                                   {0x0009, LOOM_CLASS_S},
                                                   {0x000B, LOOM_CLASS_S},
                                                   {0x0085, LOOM_CLASS_S},
                                                   {0x00A0, LOOM_CLASS_S},
                                                   {0x1680, LOOM_CLASS_S},
                                                   {0x2028, LOOM_CLASS_S},
                                                   {0x3000, LOOM_CLASS_S},
                                                   {0x001C, 0},
                                                   {0x001F, 0},
                                                   {0x180E, 0},
                                                   {0x200B, 0},
                                                   {0xFEFF, 0},
                                                   {0xFFFD, 0},
                                                   {0xD800, 0},
                                                   {0x10FFFF, 0},
                                                   {0x1E4D0, LOOM_CLASS_LO},
                                                   {0x2EBF0, LOOM_CLASS_LO},
                                                   {0x31350, LOOM_CLASS_LO},
                                                   {0x10D50, LOOM_CLASS_LU},
                                                   {0x11DE0, 0},
                                                   {0xE0100, LOOM_CLASS_M}};
    for (const auto &[point, bits] : expected) EXPECT_EQ(loom_unicode_class(point), bits) << std::hex << point;
}

TEST(Unicode, ReadsEachCharacterAndNothingThatIsNone) {
    uint32_t point;
    for (uint32_t wanted = 0; wanted < LOOM_UNICODE_POINTS; wanted++) {
        const std::string text = utf8(wanted);
        const auto *bytes = reinterpret_cast<const uint8_t *>(text.data());
        const bool is_surrogate = wanted >= 0xD800 && wanted <= 0xDFFF;
        ASSERT_EQ(loom_utf8_read(bytes, text.size(), &point), is_surrogate ? 1 : text.size());
        ASSERT_EQ(point, is_surrogate ? 0xFFFD : wanted);
        if (text.size() == 1) continue;
        ASSERT_EQ(loom_utf8_read(bytes, text.size() - 1, &point), 1u);
        ASSERT_EQ(point, 0xFFFDu);
    }
    for (const std::string text :
         {"\x80", "\xBF\x80", "\xC0\x80", "\xC1\xBF", "\xE0\x9F\xBF", "\xF0\x8F\xBF\xBF", "\xF4\x90\x80\x80",
          "\xF5\x80\x80\x80", "\xF8\x88\x80\x80", "\xFF", "\xC3(", "\xE4\xB8(", "\xF0\x9F\x98("}) {
        ASSERT_EQ(loom_utf8_read(reinterpret_cast<const uint8_t *>(text.data()), text.size(), &point), 1u) << text;
        ASSERT_EQ(point, 0xFFFDu) << text;
    }
}

/* ---------------------------------------------------------------------------------------------------------- clauses */

TEST(Split, AnEmptyTextHasNoPiece) {
    for (loom_split_pattern pattern : all_patterns) {
        EXPECT_EQ(loom_split_next(pattern, nullptr, 0, 0), 0u);
        EXPECT_EQ(loom_split_next(pattern, reinterpret_cast<const uint8_t *>("abc"), 3, 3), 3u);
    }
}

TEST(Split, WordsTakeTheSpaceBeforeThem) {
    expect_cut(all, "Hello| world| of| words| and| internationalisation");
    expect_cut(all, "Привет| мир| и| Ελληνικά| 日本語| naïve| coöperate");
    expect_cut(all, "One|.| Two|,| three|!!| four|?");
    expect_cut(all, "abcdefgh| abcdefghi| abcdefghé| abcdefghéabcdefghijklm|.");
}

TEST(Split, ContractionsOfGpt2AreOfSmallLetters) {
    expect_cut(LOOM_SPLIT_GPT2, "it|'s| we|'re| I|'m| they|'ll| you|'d| don|'t| I|'ve");
    expect_cut(LOOM_SPLIT_GPT2, "'s|abc|'t|'|l|'|r|'|v|'|S|'|LL|'|ſ|'ll|l|'re|e");
    expect_cut(LOOM_SPLIT_GPT2, " '|s| '|ll|''|s|'");
}

TEST(Split, ContractionsOfCl100kAreOfAnyCase) {
    expect_cut(of_cl100k, "it|'s| IT|'S| we|'Re| I|'M| they|'lL| you|'D| don|'T| I|'vE");
    expect_cut(of_cl100k, "'s|abc|'T|abc|'ſ|abc|'la|'r|'v|'x");
    expect_cut(of_cl100k, "K|'\u212A| ''|s|'''|m|''");
}

TEST(Split, ContractionsOfO200kBelongToTheWordBefore) {
    expect_cut(LOOM_SPLIT_O200K, "it's| IT'S| we'Re| I'M| they'lL| you'D| don't| I'vE| 漢'ſ|abc");
    expect_cut(LOOM_SPLIT_O200K, "'sabc| ''|ll|1|'s| it's|'s's| l|'la");
    expect_cut(LOOM_SPLIT_O200K, "\u0301's|a| \u0301'd|x");
}

TEST(Split, NumbersAreWholeOrByThreeOrOne) {
    expect_cut(LOOM_SPLIT_GPT2, "1234567| 89|a|1|b| ½²٣|x");
    expect_cut({LOOM_SPLIT_CL100K, LOOM_SPLIT_LLAMA3, LOOM_SPLIT_O200K}, "123|456|7| |89| |½²٣|Ⅷ|x|12|.|5");
    expect_cut(LOOM_SPLIT_QWEN2, "1|2|3| |4|5|a|½|²|٣");
}

TEST(Split, PunctuationTakesTheSpaceBeforeItAndLineEndsBehindIt) {
    expect_cut(LOOM_SPLIT_GPT2, "a|!!|\n|b| ++|   | --|\n\n");
    expect_cut(of_cl100k, "a|!!\n\r\n|b| ++\n|\tb| /\n|/");
    expect_cut(LOOM_SPLIT_O200K, "a|!!\n\r\n|b| /\n//\n/|a| /|b");
    expect_cut(all, "a| 😀\u200B\uFEFF\u180E\x1C\x1F| b");
}

/* One character that is no letter, number or line end begins a word of the later patterns, whatever it is. */
TEST(Split, WordsTakeAnyCharacterBeforeThem) {
    expect_cut(LOOM_SPLIT_GPT2, "(|abc|)(|def|\t|x|\u00A0|y| $|z|\n|w");
    expect_cut(later, "(abc|)(|def|\tx|\u00A0y| $|z|\n|w|\r|v|1|u|\u0085t|\u2028s");
    expect_cut(later, "_a|__|b|😀c|-|1|$€|d");
}

TEST(Split, WhiteSpaceLeavesItsLastCharacterToTheNextWord) {
    expect_cut(LOOM_SPLIT_GPT2, "a|   | b|\n\n|\n|c|\t|\t|d|  |\u3000|e|  \n ");
    expect_cut(later, "a|   | b|\n\n\n|c|\t|\td|  |\u3000e|   ");
    expect_cut(all, "   ");
    expect_cut(all, "  | a");
    expect_cut(all, "\u00A0\u2003|\u00A0|1");
}

TEST(Split, LineEndsEndWhiteSpace) {
    expect_cut(later, " \n|  | a|\r\n \t\r|b|\n\n|  |\tc|\n|\u0085|1|\u2028\n|\u2028|2");
    expect_cut({LOOM_SPLIT_LLAMA3, LOOM_SPLIT_QWEN2, LOOM_SPLIT_O200K}, "a| \n|  ");
    expect_cut({LOOM_SPLIT_LLAMA3, LOOM_SPLIT_QWEN2, LOOM_SPLIT_O200K}, " \n \r|\t ");
    expect_cut(LOOM_SPLIT_CL100K, "a| \n  ");
    expect_cut(LOOM_SPLIT_CL100K, "a| \n| b| \n \r\t ");
}

TEST(Split, WordsOfO200kBeginAtUpperCaseLetters) {
    expect_cut(LOOM_SPLIT_O200K, "camel|Case|Words|HTTPServer| XMLHttp|Request|ABC| ABC|1|Ab|Cd|ǅa|Bǅ");
    expect_cut(LOOM_SPLIT_GPT2, "camelCaseWordsHTTPServer");
    /* Letters without case go with both, and where no small letter follows, the last of them ends the word. */
    expect_cut(LOOM_SPLIT_O200K, "日本ABC日a本|A日|ABC| 日ABaʰª日|Ab| ʰ|AB");
    /* A mark is a letter without case; alone before capitals it is a word. */
    expect_cut(LOOM_SPLIT_O200K, "e\u0301a|E\u0301|AB| \u0301|AB|!\u0301|AB|!\n|E\u0301ABa");
    expect_cut(LOOM_SPLIT_O200K, "\u0301|AB");
    expect_cut(LOOM_SPLIT_O200K, "\u0301Ab|\n|\u0301\u0301|AB|1|\u0301|1|\u0301|\n|\u0301| ");
    expect_cut(LOOM_SPLIT_O200K, "!!\u0301|A| !\u0301|b");
}

TEST(Split, MarksAreNoLettersOfTheOthers) {
    expect_cut(LOOM_SPLIT_GPT2, "e|\u0301|a| \u0301\u0301|b");
    expect_cut(of_cl100k, "e|\u0301ae|\u0301\u0301|b| \u0301|b");
}

TEST(Split, BytesThatAreNoUtf8AreSymbols) {
    expect_cut(LOOM_SPLIT_GPT2, "a|\xFF\xC0\xAF| \xE4\xB8|b| \xED\xA0\x80!| x|\x80");
    expect_cut(LOOM_SPLIT_CL100K, "a|\xFF\xC0\xAF| \xE4\xB8\n|b|\xFF"
                                  "c|\x80\xF4\x90\x80\x80");
    expect_cut(LOOM_SPLIT_O200K, "a|\xFF\xC0\xAF/| \xE4\xB8\n|b|\xFF"
                                 "c|\xF0\x9F\x98");
    for (loom_split_pattern pattern : all_patterns) EXPECT_EQ(cut(pattern, "1\xC5"), "1|\xC5");
    expect_cut(later, "a|'\xC5");
}

/* -------------------------------------------------------------------------------------------------------- long runs */

/* What tries again from every position takes a million times a million steps here, or as many stack frames. */
TEST(Split, LongRunsTakeLinearTime) {
    const size_t n = 1000000;
    for (const char *part : {"a", "A", "é", "日", "\u0301", " ", "\n", "'", "\u3000", "!", "/", "\xFF"}) {
        const std::string text = repeated(part, n);
        for (loom_split_pattern pattern : all_patterns) EXPECT_EQ(ends(pattern, text).size(), 1u) << part;
    }
    const std::string spaces = repeated(" ", n), capitals = repeated("A", n);
    const std::pair<std::string, size_t> few[] = {{spaces + "a", 2},
                                                  {spaces + "\n" + spaces + "!", 3},
                                                  {repeated("日", n) + capitals + "1", 3},
                                                  {"\u0301" + capitals, 2},
                                                  {"!" + repeated("\n", n) + repeated("/", n) + "a", 5}};
    for (const auto &[text, most] : few)
        for (loom_split_pattern pattern : all_patterns) EXPECT_LE(ends(pattern, text).size(), most);
    for (const char *part : {"'s", "\n ", " \n", "1", "日A", "\u0301A", "a'", "' ", "\xC5\xBF'"}) {
        const std::string text = repeated(part, n / 10);
        for (loom_split_pattern pattern : all_patterns) EXPECT_LE(ends(pattern, text).size(), text.size());
    }
}

/* -------------------------------------------------------------------------------------------------------- spellings */

struct spelling {
    loom_split_pattern pattern;
    const char *regex;
};
const spelling spellings[] = {
    {LOOM_SPLIT_GPT2, R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)"},
    {LOOM_SPLIT_GPT2, R"('s|'t|'re|'ve|'m|'ll|'d| ?[\p{L}]+| ?[\p{N}]+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)"},
    {LOOM_SPLIT_GPT2, R"('(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)"},
    {LOOM_SPLIT_GPT2, R"('(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s)"},
    {LOOM_SPLIT_CL100K, R"('(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+)"
                        R"(| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s)"},
    {LOOM_SPLIT_LLAMA3, R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3})"
                        R"(| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)"},
    {LOOM_SPLIT_LLAMA3, R"('(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3})"
                        R"(| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+)"},
    {LOOM_SPLIT_QWEN2, R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N})"
                       R"(| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)"},
    {LOOM_SPLIT_O200K,
     R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?)"
     R"(|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?)"
     R"(|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)"}};

TEST(Split, PatternsAreFoundByTheirRegularExpressions) {
    for (const spelling &known : spellings) {
        loom_split_pattern found;
        ASSERT_TRUE(loom_split_pattern_find(known.regex, &found)) << known.regex;
        EXPECT_EQ(found, known.pattern) << known.regex;
        EXPECT_FALSE(loom_split_pattern_find((known.regex + std::string("+")).c_str(), &found));
        EXPECT_FALSE(loom_split_pattern_find(known.regex + 1, &found));
    }
    loom_split_pattern found;
    EXPECT_FALSE(loom_split_pattern_find("", &found));
    EXPECT_FALSE(loom_split_pattern_find("\\s+", &found));
}

/* ------------------------------------------------------------------------------------------------------------ PCRE2 */

/* PCRE2's 8-bit library, of which only the library itself is needed: what of its interface is used here has not changed
 * since its first version. */
class Pcre2 {
  public:
    /* Constants of pcre2.h. */
    enum : uint32_t {
        DOLLAR_ENDONLY = 0x10,
        UCP = 0x20000,
        UTF = 0x80000,
        NO_UTF_CHECK = 0x40000000,
        JIT_COMPLETE = 1
    };
    enum { NO_MATCH = -1, FIRST_UTF_ERROR = -3, LAST_UTF_ERROR = -23 };

    Pcre2() {
        library = dlopen("libpcre2-8.so.0", RTLD_NOW | RTLD_LOCAL);
        if (library == nullptr) return;
        load(compile, "pcre2_compile_8");
        load(compile_machine_code, "pcre2_jit_compile_8");
        load(free_code, "pcre2_code_free_8");
        load(new_data, "pcre2_match_data_create_8");
        load(free_data, "pcre2_match_data_free_8");
        load(match, "pcre2_match_8");
        load(offsets, "pcre2_get_ovector_pointer_8");
        load(start, "pcre2_get_startchar_8");
        data = new_data(4, nullptr);
    }
    ~Pcre2() {
        if (library == nullptr) return;
        free_data(data);
        dlclose(library);
    }

    void *library = nullptr, *data = nullptr;
    void *(*compile)(const char *, size_t, uint32_t, int *, size_t *, void *);
    int (*compile_machine_code)(void *, uint32_t);
    void (*free_code)(void *);
    void *(*new_data)(uint32_t, void *);
    void (*free_data)(void *);
    int (*match)(void *, const char *, size_t, size_t, uint32_t, void *, void *);
    size_t *(*offsets)(void *);
    size_t (*start)(void *);

  private:
    template <class function> void load(function &to, const char *name) {
        to = reinterpret_cast<function>(dlsym(library, name));
        EXPECT_NE(to, nullptr) << name;
    }
};

/* A regular expression. */
class Regex {
  public:
    Regex(Pcre2 &of, const char *text) : pcre2(of) {
        int error;
        size_t place;
        code = pcre2.compile(text, strlen(text), Pcre2::UTF | Pcre2::UCP | Pcre2::DOLLAR_ENDONLY, &error, &place,
                             nullptr);
        EXPECT_NE(code, nullptr) << text << ": error " << error << " at " << place;
        pcre2.compile_machine_code(code, Pcre2::JIT_COMPLETE);
    }
    ~Regex() {
        pcre2.free_code(code);
    }
    /* The first match from `at` on. */
    bool find(const std::string &text, size_t at, size_t *begin, size_t *end, uint32_t how = Pcre2::NO_UTF_CHECK) {
        result = pcre2.match(code, text.data(), text.size(), at, how, pcre2.data, nullptr);
        if (result < 1) return false;
        *begin = pcre2.offsets(pcre2.data)[0];
        *end = pcre2.offsets(pcre2.data)[1];
        return true;
    }
    int result = 0;

  private:
    Pcre2 &pcre2;
    void *code;
};

class SplitLikePcre2 : public ::testing::Test {
  protected:
    void SetUp() override {
        if (pcre2.library == nullptr) GTEST_SKIP() << "libpcre2-8.so.0 is not here: nothing to compare with";
        nothing = std::make_unique<Regex>(pcre2, "(?!)");
        for (const spelling &it : spellings) regexes[it.pattern].push_back(std::make_unique<Regex>(pcre2, it.regex));
        learn_characters();
    }

    /* Which code points PCRE2 classes as we do: its Unicode may be of another version, and to it U+180E is a space. */
    void learn_characters() {
        std::vector<unsigned> theirs(LOOM_UNICODE_POINTS);
        std::vector<uint32_t> point_at;
        std::string text;
        for (uint32_t point = 0; point < LOOM_UNICODE_POINTS; point++) {
            if (point >= 0xD800 && point <= 0xDFFF) continue;
            text += utf8(point);
            point_at.resize(text.size(), point);
        }
        const std::pair<const char *, unsigned> classes[] = {{"\\p{Lu}+", LOOM_CLASS_LU}, {"\\p{Ll}+", LOOM_CLASS_LL},
                                                             {"\\p{Lt}+", LOOM_CLASS_LT}, {"\\p{Lm}+", LOOM_CLASS_LM},
                                                             {"\\p{Lo}+", LOOM_CLASS_LO}, {"\\p{M}+", LOOM_CLASS_M},
                                                             {"\\p{N}+", LOOM_CLASS_N},   {"\\s+", LOOM_CLASS_S}};
        for (const auto &[name, bit] : classes) {
            Regex regex(pcre2, name);
            for (size_t begin, end = 0; regex.find(text, end, &begin, &end);)
                for (size_t at = begin; at < end; at++) theirs[point_at[at]] |= bit;
        }
        int differing = 0;
        for (uint32_t point = 0; point < LOOM_UNICODE_POINTS; point++) {
            const bool is_same = theirs[point] == loom_unicode_class(point);
            if (is_same && theirs[point] != 0) characters.push_back(utf8(point));
            differing += !is_same;
            EXPECT_TRUE(is_same || point > 0x2FF || point == 0x295) << std::hex << point;
        }
        EXPECT_LT(differing, 30000) << "PCRE2's Unicode is far from ours";
        RecordProperty("differing", differing);
    }

    /* Text of what patterns tell apart, in runs and in mixtures, and now and then of any character at all. */
    std::string random_text() {
        static const std::vector<std::string> parts = {
            "'",      "'s",     "'S",     "'ll",    "'Ll",    "'v",     "'ve",    "'RE",       "'\u017F", "\u017F",
            "\u212A", "s",      "t",      "e",      "l",      "a",      "word",   "B",         "UPPER",   "\u00E9",
            "\u00C9", "\u01C5", "\u02B0", "\u00AA", "\u65E5", "\u0301", "\u0903", "1",         "234",     "\u0663",
            "\u00BD", " ",      "  ",     "\n",     "\r",     "\r\n",   "\t",     "\u00A0",    "\u0085",  "\u2028",
            "\u3000", "/",      "!",      "\u200B", "\uFEFF", "\x1C",   "\u20AC", "\U0001F600"};
        static const std::vector<std::string> invalid = {
            "\xFF",         "\x80",         "\xBF",     "\xC5",     "\xE4\xB8",
            "\xF0\x9F\x98", "\xED\xA0\x80", "\xC0\xAF", "\xE0\x80", "\xF4\x90\x80\x80",
            "\xF8\x88"};
        const size_t length = pick(16) + 1, kinds = pick(6) + 1, offset = pick(parts.size());
        const bool is_mixed = pick(2), has_invalid = pick(4) == 0;
        std::string text;
        for (size_t i = 0; i < length; i++) {
            const size_t part = is_mixed ? pick(parts.size()) : (offset + pick(kinds) * 7) % parts.size();
            if (has_invalid && pick(4) == 0) text += invalid[pick(invalid.size())];
            text += pick(16) == 0 ? characters[pick(characters.size())] : parts[part];
        }
        return text;
    }

    size_t pick(size_t n) {
        return std::uniform_int_distribution<size_t>(0, n - 1)(random);
    }

    /* The text with U+FFFD in the place of each byte of which PCRE2 says that no character begins there, and where each
     * byte of it was. */
    std::string repaired(std::string text, std::vector<size_t> *origin) {
        size_t begin, end;
        origin->clear();
        for (size_t i = 0; i <= text.size(); i++) origin->push_back(i);
        while (!nothing->find(text, 0, &begin, &end, 0) && nothing->result <= Pcre2::FIRST_UTF_ERROR &&
               nothing->result >= Pcre2::LAST_UTF_ERROR) {
            const size_t bad = pcre2.start(pcre2.data);
            text.replace(bad, 1, "\xEF\xBF\xBD");
            origin->insert(origin->begin() + (ptrdiff_t)bad, 2, (*origin)[bad]);
        }
        return text;
    }

    /* The ends of the pieces that a regular expression finds. */
    std::vector<size_t> found_ends(Regex &regex, const std::string &valid, const std::vector<size_t> &origin) {
        std::vector<size_t> found;
        for (size_t begin = 0, end = 0; end < valid.size();) {
            const size_t at = end;
            if (!regex.find(valid, at, &begin, &end) || begin != at) {
                ADD_FAILURE() << "no match at " << at << ": " << regex.result;
                break;
            }
            found.push_back(origin[end]);
        }
        return found;
    }

    /* A text goes through each pattern, in one of its spellings in turn. */
    void expect_same(const std::string &text) {
        std::vector<size_t> origin;
        const std::string valid = repaired(text, &origin);
        turn++;
        for (const auto &[pattern, spelled] : regexes)
            ASSERT_EQ(ends(pattern, text), found_ends(*spelled[turn % spelled.size()], valid, origin))
                << "pattern " << pattern << "\n"
                << ::testing::PrintToString(text) << "\n"
                << cut(pattern, text);
    }

    Pcre2 pcre2;
    std::unique_ptr<Regex> nothing; /* matches nowhere, and so only tells whether a text is valid */
    std::map<loom_split_pattern, std::vector<std::unique_ptr<Regex>>> regexes;
    size_t turn = 0;
    std::vector<std::string> characters; /* that are of a class, the same for both */
    std::mt19937_64 random{7};
};

TEST_F(SplitLikePcre2, OnRandomText) {
    for (int i = 0; i < 100000 && !HasFatalFailure(); i++) expect_same(random_text());
}

/* All texts of four characters, of one for each thing that the patterns tell apart. */
TEST_F(SplitLikePcre2, OnEveryShortText) {
    const std::vector<std::string> parts = {"'", "s", "L",  "\u017F", "\u65E5", "\u0301",
                                            "1", " ", "\n", "\t",     "!",      "/"};
    const size_t n = parts.size();
    for (size_t i = 0; i < n * n * n * n && !HasFatalFailure(); i++)
        expect_same(parts[i % n] + parts[i / n % n] + parts[i / n / n % n] + parts[i / n / n / n]);
}

} // namespace
