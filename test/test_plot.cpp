/* gptloom plot: reading metrics, axes, lines, and the picture. */
#include "../train/command.h"
#include "../train/plot/plot.h"
#include "../train/plot/axis.h"
#include "../train/plot/line.h"
#include "../train/plot/format.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <limits>
#include <random>
#include <sstream>
#include <string>
#include <vector>

namespace fs = std::filesystem;

namespace {

/* --------------------------------------------------------------------------------------------------------- scaffold */

std::string read(const fs::path &path) {
    std::ifstream file(path, std::ios::binary);
    std::ostringstream text;
    text << file.rdbuf();
    return text.str();
}

size_t count(const std::string &text, const std::string &part) {
    size_t n = 0;
    for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + part.size())) n++;
    return n;
}

bool contains(const std::string &text, const std::string &part) {
    return text.find(part) != std::string::npos;
}

class PlotTest : public ::testing::Test {
  protected:
    void SetUp() override {
        std::string pattern = (fs::temp_directory_path() / "gptloom-plot-XXXXXX").string();
        ASSERT_NE(mkdtemp(pattern.data()), nullptr);
        here = pattern;
    }
    void TearDown() override {
        fs::remove_all(here);
    }

    /* A run's directory with these metrics. */
    std::string run(const std::string &name, const std::string &metrics) {
        fs::create_directories(here / name);
        std::ofstream(here / name / "metrics.jsonl", std::ios::binary) << metrics;
        return (here / name).string();
    }

    /* The metrics of `steps` steps like a real run's, every `val_every`-th with a validation loss. */
    static std::string metrics(int steps, int val_every, double end = 1.5) {
        std::mt19937 random(1);
        std::normal_distribution<double> noise(0, 0.05);
        std::ostringstream text;
        for (int s = 1; s <= steps; s++) {
            const double loss = end + 4 * std::exp(-20.0 * s / steps);
            text << "{\"step\": " << s << ", \"tokens\": " << 768 * s << ", \"loss\": " << loss + noise(random)
                 << ", \"lr\": " << 1e-3 * s / steps << ", \"grad_norm\": " << 1 + noise(random)
                 << ", \"ms\": 30.0, \"tokens_per_s\": " << 25600 + 100 * noise(random);
            if (val_every && s % val_every == 0) text << ", \"val_loss\": " << loss + 0.125;
            text << "}\n";
        }
        return text.str();
    }

    /* Draws runs; an error fails the test. */
    static std::string draw(const std::vector<std::string> &directories, loom_plot_options options = {}) {
        std::vector<loom_curves> runs(directories.size());
        loom_error error{};
        for (size_t i = 0; i < runs.size(); i++)
            EXPECT_TRUE(loom_curves_read(&runs[i], directories[i].c_str(), &error)) << error.message;
        loom_svg svg{};
        EXPECT_TRUE(loom_plot_draw(&svg, runs.data(), static_cast<int>(runs.size()), &options, &error))
            << error.message;
        std::string text = svg.text ? std::string(svg.text, svg.length) : "";
        loom_svg_free(&svg);
        for (loom_curves &curves : runs) loom_curves_free(&curves);
        return text;
    }

    /* A picture that any program shows: well-formed, all numbers finite, nothing from elsewhere. */
    void expect_sound(const std::string &svg) {
        std::ofstream(here / "picture.svg", std::ios::binary) << svg;
        std::ofstream(here / "check.py") << "import re, sys, xml.etree.ElementTree as tree\n"
                                            "for element in tree.parse(sys.argv[1]).getroot().iter():\n"
                                            "    for name, value in element.items():\n"
                                            "        if re.search(r'nan|inf', value):\n"
                                            "            sys.exit(f'{name}=\"{value[:200]}\"')\n";
        const std::string check = "python3 '" + (here / "check.py").string() + "' '" + (here / "picture.svg").string() +
                                  "'";
        EXPECT_EQ(std::system(check.c_str()), 0);
        EXPECT_FALSE(contains(svg, "<script"));
        EXPECT_FALSE(contains(svg, "href"));
        EXPECT_EQ(count(svg, "http"), 1u); /* the name space */
    }

    fs::path here;
};

/* ---------------------------------------------------------------------------------------------------------- metrics */

class Metrics : public PlotTest {
  protected:
    void TearDown() override {
        loom_curves_free(&curves);
        PlotTest::TearDown();
    }
    bool read_metrics(const std::string &text) {
        loom_curves_free(&curves);
        return loom_curves_read(&curves, run("run", text).c_str(), &error);
    }
    std::vector<double> column(loom_curve curve) {
        return std::vector<double>(curves.column[curve], curves.column[curve] + curves.n);
    }
    loom_curves curves{};
    loom_error error{};
};

TEST_F(Metrics, FillEveryColumn) {
    ASSERT_TRUE(
        read_metrics("{\"step\": 1, \"tokens\": 64, \"loss\": 5.5, \"lr\": 0.001, \"grad_norm\": 2, \"ms\": 500, "
                     "\"tokens_per_s\": 128, \"val_loss\": 5.25, \"else\": [1]}\n"
                     "\n"
                     "{\"step\":2,\"loss\":null,\"ms\":250}\r\n"))
        << error.message;
    ASSERT_EQ(curves.n, 2);
    EXPECT_EQ(column(LOOM_CURVE_STEP), (std::vector<double>{1, 2}));
    EXPECT_EQ(column(LOOM_CURVE_SECONDS), (std::vector<double>{0.5, 0.75}));
    const std::vector<std::pair<loom_curve, double>> first = {
        {LOOM_CURVE_TOKENS, 64}, {LOOM_CURVE_LOSS, 5.5},    {LOOM_CURVE_VAL_LOSS, 5.25},
        {LOOM_CURVE_LR, 0.001},  {LOOM_CURVE_GRAD_NORM, 2}, {LOOM_CURVE_TOKENS_PER_S, 128}};
    for (const auto &[curve, value] : first) {
        EXPECT_EQ(curves.column[curve][0], value) << curve;
        EXPECT_TRUE(std::isnan(curves.column[curve][1])) << curve;
    }
    EXPECT_EQ(curves.name, (here / "run").string());
}

TEST_F(Metrics, OverflowingNumbersAreNotFinite) {
    ASSERT_TRUE(read_metrics("{\"step\": 1, \"loss\": 1e999}\n"));
    EXPECT_TRUE(std::isnan(curves.column[LOOM_CURVE_LOSS][0]));
}

TEST_F(Metrics, MayEndInTheMiddleOfALine) {
    ASSERT_TRUE(read_metrics("{\"step\": 1}\n{\"step\": 2}\n{\"step\": 3, \"lo")) << error.message;
    EXPECT_EQ(curves.n, 2);
    ASSERT_TRUE(read_metrics("{\"step\": 1}\n{\"step\": 2}")); /* only the line's end is missing */
    EXPECT_EQ(curves.n, 2);
    ASSERT_TRUE(read_metrics(std::string("{\"step\": 1}\n\0\0\0\0", 16)));
    EXPECT_EQ(curves.n, 1);
}

TEST_F(Metrics, NameTheDamagedLine) {
    const std::vector<std::pair<std::string, std::string>> damaged = {
        {"{\"step\": 2, \"lo\n", "line 2 is damaged"},
        {"[2]\n", "line 2 is damaged"},
        {"{\"step\": 2} {\n", "line 2 is damaged"},
        {std::string("{\"step\": 2}\0\n", 13), "line 2 is damaged"},
        {"{\"loss\": 2}\n", "line 2: has no \"step\""},
        {"{\"step\": null}\n", "line 2: has no \"step\""},
        {"{\"step\": -1}\n", "line 2: has no \"step\""},
        {"{\"step\": 2, \"loss\": \"2\"}\n", "line 2: \"loss\" is not a number"},
    };
    for (const auto &[line, message] : damaged) {
        EXPECT_FALSE(read_metrics("{\"step\": 1}\n" + line + "{\"step\": 3}\n")) << line;
        EXPECT_TRUE(contains(error.message, message)) << error.message;
        EXPECT_TRUE(contains(error.message, (here / "run/metrics.jsonl").string())) << error.message;
    }
}

TEST_F(Metrics, KeepTheLastOfStepsDoneAgain) {
    ASSERT_TRUE(read_metrics("{\"step\": 1, \"loss\": 1, \"ms\": 1000}\n{\"step\": 2, \"loss\": 2, \"ms\": 1000}\n"
                             "{\"step\": 3, \"loss\": 3, \"ms\": 1000}\n{\"step\": 2, \"loss\": 4, \"ms\": 500}\n"));
    EXPECT_EQ(column(LOOM_CURVE_STEP), (std::vector<double>{1, 2}));
    EXPECT_EQ(column(LOOM_CURVE_LOSS), (std::vector<double>{1, 4}));
    EXPECT_EQ(column(LOOM_CURVE_SECONDS), (std::vector<double>{1, 1.5}));
}

TEST_F(Metrics, MustBeThere) {
    EXPECT_FALSE(loom_curves_read(&curves, (here / "nowhere").c_str(), &error));
    EXPECT_TRUE(contains(error.message, "nowhere: is not a run's directory")) << error.message;
    fs::create_directory(here / "empty");
    EXPECT_FALSE(loom_curves_read(&curves, (here / "empty").c_str(), &error));
    EXPECT_TRUE(contains(error.message, "no metrics.jsonl there")) << error.message;
    EXPECT_FALSE(read_metrics(""));
    EXPECT_TRUE(contains(error.message, "no steps yet")) << error.message;
    EXPECT_FALSE(read_metrics("{\"step\": 1, \"lo"));
    EXPECT_TRUE(contains(error.message, "no steps yet")) << error.message;
    fs::remove(here / "run/metrics.jsonl");
    fs::create_directory(here / "run/metrics.jsonl");
    loom_curves_free(&curves);
    EXPECT_FALSE(loom_curves_read(&curves, (here / "run").c_str(), &error));
    EXPECT_TRUE(contains(error.message, "not a regular file")) << error.message;
}

/* ------------------------------------------------------------------------------------------------------------- axes */

loom_range range_of(const std::vector<double> &values) {
    loom_range range{};
    for (double value : values) loom_range_add(&range, value);
    return range;
}

std::vector<std::string> labels(const loom_axis &axis) {
    std::vector<std::string> labels;
    for (int i = 0; i < axis.n_ticks; i++) {
        char text[64];
        loom_axis_label(&axis, i, text, sizeof text);
        labels.push_back(text);
    }
    return labels;
}

TEST(Axis, HasRoundTicksWithShortLabels) {
    const struct {
        std::vector<double> values;
        bool logarithmic, zero;
        double least_step;
        std::vector<std::string> labels;
    } cases[] = {
        {{1.23, 5.5}, false, false, 0, {"2", "3", "4", "5"}},
        {{1.4, 2.1}, false, false, 0, {"1.4", "1.5", "1.6", "1.7", "1.8", "1.9", "2.0", "2.1"}},
        {{1, 2000}, false, true, 1, {"0", "500", "1000", "1500", "2000"}},
        {{3, 24000}, false, true, 0, {"0", "5k", "10k", "15k", "20k"}},
        {{1e-5, 1e-3}, false, true, 0, {"0", "2e-4", "4e-4", "6e-4", "8e-4", "1e-3"}},
        {{5e8, 2.6e9}, false, true, 1, {"0", "0.5B", "1.0B", "1.5B", "2.0B", "2.5B"}},
        {{1, 3}, false, false, 1, {"1", "2", "3"}},
        {{7}, false, false, 5, {"5", "10"}},
        {{0.004, 5.5}, true, false, 0, {"0.01", "0.1", "1"}},
        {{0.6, 34}, true, false, 0, {"1", "2", "5", "10", "20"}},
        {{2, 3e11}, true, false, 0, {"1000", "1M", "1B"}},
        {{-1, 0}, true, false, 0, {"-1.0", "-0.8", "-0.6", "-0.4", "-0.2", "0"}}, /* no logarithm: linear */
        {{}, false, false, 0, {"0", "0.2", "0.4", "0.6", "0.8", "1.0"}},
    };
    for (const auto &c : cases) {
        const loom_range range = range_of(c.values);
        EXPECT_EQ(labels(loom_axis_make(&range, c.logarithmic, c.zero, 0, 250, 50, c.least_step)), c.labels);
    }
}

TEST(Axis, PutsItsEndsAtItsEdges) {
    for (bool logarithmic : {false, true}) {
        const loom_range range = range_of({0.5, NAN, 50, INFINITY});
        const loom_axis axis = loom_axis_make(&range, logarithmic, false, 300, 100, 40, 0);
        EXPECT_DOUBLE_EQ(loom_axis_pixel(&axis, 0.5), 300);
        EXPECT_DOUBLE_EQ(loom_axis_pixel(&axis, 50), 100);
        EXPECT_NEAR(loom_axis_pixel(&axis, 5), logarithmic ? 200 : 300 - 200 * 4.5 / 49.5, 1e-9);
        EXPECT_TRUE(std::isnan(loom_axis_pixel(&axis, NAN)));
        EXPECT_EQ(std::isnan(loom_axis_pixel(&axis, 0)), logarithmic);
    }
}

TEST(Axis, SurvivesAnyRange) {
    const std::vector<double> extremes = {-1e308, -1, -1e-310, 0, 5e-324, 1e-308, 1, 1 + 1e-15, 1e20, 1.7e308};
    for (double a : extremes)
        for (double b : extremes)
            for (bool logarithmic : {false, true}) {
                const loom_range range = range_of({a, b});
                const loom_axis axis = loom_axis_make(&range, logarithmic, true, 0, 500, 10, 0);
                EXPECT_LE(axis.n_ticks, LOOM_AXIS_MAX_TICKS);
                for (const std::string &label : labels(axis)) EXPECT_LE(label.size(), 24u) << label;
                const double pixel = loom_axis_pixel(&axis, a);
                EXPECT_TRUE(std::isnan(pixel) || (pixel >= -1e-6 && pixel <= 500 + 1e-6)) << a << " " << b;
            }
}

TEST(Words, AreShort) {
    const auto text = [](auto function, auto... arguments) {
        char buffer[64];
        function(arguments..., buffer, sizeof buffer);
        return std::string(buffer);
    };
    const auto number = [&](double value, int digits, bool trim = false) {
        return text(loom_number_label, value, digits, trim);
    };
    EXPECT_EQ(number(1.47, 4), "1.470");
    EXPECT_EQ(number(1.47, 4, true), "1.47");
    EXPECT_EQ(number(0.0133, 3), "0.0133");
    EXPECT_EQ(number(9377.4, 3), "9377");
    EXPECT_EQ(number(23449, 3), "23.4k");
    EXPECT_EQ(number(1.05e11, 3), "105B");
    EXPECT_EQ(number(6e-4, 3), "6e-4");
    EXPECT_EQ(number(9.99999975e-5, 3), "1e-4");
    EXPECT_EQ(number(999999, 3), "1.00M");
    EXPECT_EQ(number(0, 3), "0");
    EXPECT_EQ(number(NAN, 3), "–");
    EXPECT_EQ(text(loom_whole_number, 0.0), "0");
    EXPECT_EQ(text(loom_whole_number, 999.0), "999");
    EXPECT_EQ(text(loom_whole_number, 1234567.0), "1,234,567");
    EXPECT_EQ(text(loom_duration, 1.25), "1.2 s");
    EXPECT_EQ(text(loom_duration, 125.0), "2 min 05 s");
    EXPECT_EQ(text(loom_duration, 7260.0), "2 h 01 min");
    EXPECT_EQ(text(loom_duration, 86400 * 2 + 3600 * 4.0), "2 d 04 h");
    EXPECT_EQ(text(loom_shortened, "runs/first", 10), "runs/first");
    EXPECT_EQ(text(loom_shortened, "runs/firstly", 10), "run…irstly");
    EXPECT_EQ(text(loom_shortened, "äöüäöüäöüäöü", 7), "äö…üäöü");
}

/* ------------------------------------------------------------------------------------------------------------ lines */

std::vector<double> smoothed(const std::vector<double> &value, int64_t window) {
    std::vector<double> out(value.size()), scratch(3 * value.size() + 1);
    loom_smooth(out.data(), value.data(), static_cast<int64_t>(value.size()), window, scratch.data());
    return out;
}

TEST(Smoothing, IsTheMeanOfTheMean) {
    std::mt19937 random(2);
    std::normal_distribution<double> normal;
    for (int n : {1, 2, 7, 50, 101})
        for (int64_t window : {1, 2, 3, 10, 40, 500}) {
            std::vector<double> value(static_cast<size_t>(n));
            for (double &v : value) v = random() % 8 ? normal(random) : NAN;
            std::vector<double> expected = value;
            const int half = static_cast<int>((window / 2 + 1) / 2);
            for (int pass = 0; pass < 2; pass++) {
                const std::vector<double> before = expected;
                for (int i = 0; i < n; i++) {
                    double sum = 0;
                    int terms = 0;
                    const int around = std::min(i, half);
                    for (int j = i - around; j <= std::min(i + around, n - 1); j++)
                        if (!std::isnan(before[static_cast<size_t>(j)])) sum += before[static_cast<size_t>(j)], terms++;
                    if (!std::isnan(before[static_cast<size_t>(i)])) expected[static_cast<size_t>(i)] = sum / terms;
                }
            }
            const std::vector<double> out = smoothed(value, window);
            for (size_t i = 0; i < value.size(); i++) {
                ASSERT_EQ(std::isnan(out[i]), std::isnan(value[i]));
                if (std::isnan(value[i])) continue;
                ASSERT_NEAR(out[i], expected[i], 1e-12) << n << " " << window << " " << i;
            }
        }
}

TEST(Smoothing, ForgetsWhatHasLeftTheWindow) {
    std::vector<double> value(1000, 2.5);
    value[100] = 1e300;
    const std::vector<double> out = smoothed(value, 20);
    EXPECT_GT(out[100], 1e290);
    for (size_t i = 140; i < value.size(); i++) ASSERT_DOUBLE_EQ(out[i], 2.5);
}

struct path {
    std::string text;
    int64_t points;
};

path line(const std::vector<double> &y, double width = 100) {
    std::vector<double> x(y.size());
    for (size_t i = 0; i < x.size(); i++) x[i] = static_cast<double>(i);
    const loom_range x_range = range_of({0, x.back()}), y_range = range_of(y);
    const loom_axis x_axis = loom_axis_make(&x_range, false, false, 0, width, 50, 0);
    const loom_axis y_axis = loom_axis_make(&y_range, false, false, 100, 0, 50, 0);
    loom_svg svg{};
    const int64_t points = loom_line_path(&svg, &x_axis, &y_axis, x.data(), y.data(), static_cast<int64_t>(y.size()));
    path path{svg.text ? svg.text : "", points};
    loom_svg_free(&svg);
    return path;
}

TEST(Line, KeepsFewPoints) {
    EXPECT_EQ(line({0, 4, 1, 3, 2}).text, "M0 100L25 0L50 75L75 25L100 50");
}

TEST(Line, BreaksAtGaps) {
    EXPECT_EQ(line({0, 4, NAN, 3, 2}).text, "M0 100L25 0M75 25L100 50");
    EXPECT_EQ(line({NAN, 4, NAN, 0, NAN}).text, "M25 0h0M75 100h0");
    EXPECT_EQ(line({NAN, NAN}).text, "");
}

TEST(Line, KeepsExtremesOfManyPoints) {
    std::vector<double> y(100000);
    for (size_t i = 0; i < y.size(); i++) y[i] = std::sin(static_cast<double>(i));
    y[77777] = 10;
    y[33333] = -10;
    const path path = line(y);
    EXPECT_LE(path.points, 2 * 101);
    EXPECT_GE(path.points, 2 * 99);
    EXPECT_TRUE(contains(path.text, "L77.8 0L")) << path.text;
    EXPECT_TRUE(contains(path.text, "L33.3 100L")) << path.text;
    EXPECT_EQ(count(path.text, "M"), 1u);
}

TEST(Svg, EscapesWhatItIsGiven) {
    const std::vector<std::pair<std::string, std::string>> texts = {
        {"a<b>&\"c\"", "a&lt;b&gt;&amp;&quot;c&quot;"},
        {"naïve 模型 🧵", "naïve 模型 🧵"},
        {"\x01\x1b[31m", "\uFFFD\uFFFD[31m"},
        {"\xff\xc3(\xed\xa0\x80\xc0\xaf", "\uFFFD\uFFFD(\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD"},
        {"cut \xe6\xa8", "cut \uFFFD\uFFFD"},
        {"\xef\xbf\xbf", "\uFFFD\uFFFD\uFFFD"},
    };
    for (const auto &[text, escaped] : texts) {
        loom_svg svg{};
        loom_svg_escaped(&svg, text.c_str());
        EXPECT_STREQ(svg.text, escaped.c_str());
        loom_svg_free(&svg);
    }
}

/* ---------------------------------------------------------------------------------------------------------- picture */

class Picture : public PlotTest {};

TEST_F(Picture, OfOneRunNamesItsLastValues) {
    const std::string svg = draw({run("first & <best>", metrics(2000, 200))});
    expect_sound(svg);
    EXPECT_GE(count(svg, "first &amp; &lt;best&gt;"), 2u);
    for (const char *text :
         {"2,000", "1.54M", "1 min 00 s", "1.625 at 1,400", "1e-3", "1.625 val", "smoothed over 40 steps", ">Loss <",
          ">Learning rate <", ">Gradient norm <", ">Throughput <", ">tokens per second<"})
        EXPECT_TRUE(contains(svg, text)) << text;
    EXPECT_EQ(count(svg, "<circle"), 10u + 2); /* the validations, the key's, the last value's */
    EXPECT_TRUE(contains(svg, "<title>step 200: val loss 2.166</title>"));
}

TEST_F(Picture, OfSeveralRunsHasALineEach) {
    const std::vector<std::string> runs = {run("a", metrics(300, 50)), run("b", metrics(200, 0, 2.0)),
                                           run("c", metrics(100, 100, 2.5))};
    const std::string svg = draw(runs);
    expect_sound(svg);
    EXPECT_TRUE(contains(svg, ">3 training runs<"));
    for (const char *colour : {"#0072b2", "#d55e00", "#009e73"}) EXPECT_GE(count(svg, colour), 10u) << colour;
    EXPECT_FALSE(contains(svg, "#cc79a7"));
    EXPECT_TRUE(contains(svg, "smoothed over a fiftieth of the run"));
}

TEST_F(Picture, OfTheMostRunsTellsThemApart) {
    std::vector<std::string> runs;
    for (int i = 0; i < LOOM_PLOT_MAX_RUNS; i++) runs.push_back(run("r" + std::to_string(i), metrics(5, 1, i)));
    const std::string svg = draw(runs);
    expect_sound(svg);
    EXPECT_TRUE(contains(svg, "stroke=\"#3c3c3c\" stroke-width=\"1.8\" opacity=\"1\" stroke-dasharray=\"2 3\""));
}

TEST_F(Picture, OfALongRunStaysSmall) {
    const std::string svg = draw({run("long", metrics(20000, 100))});
    expect_sound(svg);
    EXPECT_LT(svg.size(), 100000u);
}

TEST_F(Picture, OfVeryShortRunsHasWholeSteps) {
    for (int steps : {1, 2, 3}) {
        const std::string svg = draw({run("short", metrics(steps, 1))});
        expect_sound(svg);
        EXPECT_TRUE(contains(svg, ">1</text>"));
        EXPECT_FALSE(contains(svg, ">1.5</text>") && contains(svg, ">0.5</text>"));
        EXPECT_FALSE(contains(svg, "every step"));
        EXPECT_EQ(contains(svg, "stroke-width=\"5\""), steps == 1); /* dots */
    }
}

TEST_F(Picture, ShowsWhereTheLossWasNotFinite) {
    std::string text;
    for (int s = 1; s <= 100; s++)
        text += "{\"step\": " + std::to_string(s) + ", \"loss\": " + (s > 40 && s <= 60 ? "null" : "2.5") + "}\n";
    const std::string gap = draw({run("gap", text)});
    expect_sound(gap);
    EXPECT_EQ(count(gap, "#b00020"), 1u);
    EXPECT_FALSE(contains(draw({run("whole", metrics(100, 0))}), "#b00020"));
}

TEST_F(Picture, SurvivesAnyValues) {
    const char *values[] = {"1e308", "-1e308", "0", "null", "5e-324", "1e999", "-3", "2"};
    std::string text;
    std::mt19937 random(3);
    for (int s = 0; s < 300; s++) {
        text += "{\"step\": " + std::to_string(s);
        for (const char *key : {"loss", "val_loss", "lr", "grad_norm", "tokens_per_s", "ms", "tokens"})
            text += std::string(", \"") + key +
                    "\": " + (std::string(key) == "tokens" && s == 299 ? "1" : values[random() % 8]);
        text += "}\n";
    }
    const std::string name = run("wild", text);
    for (loom_plot_x x : {LOOM_PLOT_STEP, LOOM_PLOT_TOKENS, LOOM_PLOT_TIME})
        for (bool log_x : {false, true}) {
            loom_plot_options options{};
            options.x = x;
            options.log_x = log_x;
            expect_sound(draw({name}, options));
        }
    expect_sound(draw({run("nothing", "{\"step\": 5}\n")}));
}

TEST_F(Picture, TakesItsOptions) {
    const std::string name = run("run", metrics(200, 0));
    loom_plot_options options{};
    options.title = "\"A & B\"";
    options.smooth = 1;
    options.x = LOOM_PLOT_TIME;
    const std::string svg = draw({name}, options);
    expect_sound(svg);
    EXPECT_TRUE(contains(svg, ">&quot;A &amp; B&quot;<"));
    EXPECT_FALSE(contains(svg, "smoothed"));
    EXPECT_TRUE(contains(svg, ">seconds<"));
    options.smooth = 25;
    EXPECT_TRUE(contains(draw({name, name}, options), "smoothed over 25 steps"));
}

TEST_F(Picture, OfALossThatFallsFarIsLogarithmic) {
    std::string text;
    for (int s = 1; s <= 100; s++)
        text += "{\"step\": " + std::to_string(s) + ", \"loss\": " + std::to_string(std::pow(10, 1 - s / 20.0)) + "}\n";
    const std::string svg = draw({run("overfit", text)});
    for (const char *label : {">1e-3<", ">0.01<", ">0.1<", ">1<"}) EXPECT_TRUE(contains(svg, label)) << label;
}

/* ---------------------------------------------------------------------------------------------------------- command */

class Command : public PlotTest {
  protected:
    int plot(std::vector<std::string> words) {
        words.insert(words.begin(), "plot");
        std::vector<char *> argv;
        for (std::string &word : words) argv.push_back(word.data());
        argv.push_back(nullptr);
        ::testing::internal::CaptureStdout();
        ::testing::internal::CaptureStderr();
        const int code = loom_command_plot(static_cast<int>(words.size()), argv.data());
        fflush(stdout);
        out = ::testing::internal::GetCapturedStdout();
        err = ::testing::internal::GetCapturedStderr();
        return code;
    }
    /* A refusal: exit code 2, one line on stderr that says this, no file. */
    void expect_refused(const std::vector<std::string> &words, const std::string &message) {
        EXPECT_EQ(plot(words), 2);
        EXPECT_EQ(out, "");
        EXPECT_TRUE(contains(err, message)) << err;
        EXPECT_EQ(count(err, "\n"), 1u) << err;
        EXPECT_FALSE(fs::exists(here / "run/loss.svg"));
        EXPECT_FALSE(fs::exists(here / "out.svg"));
    }
    std::string out, err;
};

TEST_F(Command, WritesBesideOneRun) {
    const std::string name = run("run", metrics(20, 5));
    ASSERT_EQ(plot({name}), 0) << err;
    EXPECT_EQ(out, name + "/loss.svg\n");
    EXPECT_EQ(err, "");
    expect_sound(read(name + "/loss.svg"));
}

TEST_F(Command, WritesSeveralRunsIntoTheWorkingDirectory) {
    const fs::path before = fs::current_path();
    run("a", metrics(20, 5));
    run("b", metrics(20, 5));
    fs::current_path(here);
    const int code = plot({"a", "b"});
    fs::current_path(before);
    ASSERT_EQ(code, 0) << err;
    EXPECT_EQ(out, "gptloom-plot.svg\n");
    expect_sound(read(here / "gptloom-plot.svg"));
}

TEST_F(Command, WritesToStdoutAndThroughLinks) {
    const std::string name = run("run", metrics(20, 0)), file = (here / "out.svg").string();
    ASSERT_EQ(plot({name, "--out", file}), 0) << err;
    const std::string picture = read(file);
    for (const char *place : {"-", "/dev/stdout"}) {
        ASSERT_EQ(plot({name, "--out", place}), 0) << err;
        EXPECT_EQ(out, picture) << place << ": the picture alone";
    }
    fs::create_symlink("out.svg", here / "link.svg");
    fs::resize_file(file, 0);
    ASSERT_EQ(plot({name, "--out", (here / "link.svg").string()}), 0) << err;
    EXPECT_TRUE(fs::is_symlink(here / "link.svg"));
    EXPECT_EQ(read(file), picture);
    fs::remove(file);
    fs::create_symlink("../out.svg", here / "run/loss.svg"); /* whoever has put it there */
    EXPECT_EQ(plot({name}), 2);
    EXPECT_TRUE(contains(err, "loss.svg: is a symbolic link; --out")) << err;
    EXPECT_FALSE(fs::exists(file));
    fs::remove(here / "run/loss.svg");
    for (const char *other : {"p.png", "a.b/p.PDF", "p.html"})
        expect_refused({name, "--out", other}, std::string("--out: ") + other + ": plot draws SVG only");
}

TEST_F(Command, TakesFlags) {
    const std::string name = run("run", metrics(2000, 0)), file = (here / "out.svg").string();
    ASSERT_EQ(plot({name, "--out", file, "--title", "Mine", "--x", "tokens", "--log-x", "--smooth", "7"}), 0) << err;
    EXPECT_EQ(out, file + "\n");
    const std::string svg = read(file);
    for (const char *text : {">Mine<", ">tokens<", "smoothed over 7 steps", ">1M<", ">100k<"})
        EXPECT_TRUE(contains(svg, text)) << text;
}

TEST_F(Command, RefusesBadInput) {
    const std::string name = run("run", metrics(20, 5)), file = (here / "out.svg").string();
    expect_refused({}, "RUN");
    expect_refused({name, (here / "nowhere").string(), "--out", file}, "nowhere");
    expect_refused({name, "--smooth", "0"}, "--smooth");
    expect_refused({name, "--x", "loss"}, "--x");
    expect_refused({name, "--titel", "x"}, "--title");
    expect_refused({name, "--out", (here / "no/such/out.svg").string()}, "no/such/out.svg");
    expect_refused(std::vector<std::string>(LOOM_PLOT_MAX_RUNS + 1, name), "too many");
    expect_refused({run("run", "{\"step\": 1}\n"), "--x", "tokens"}, "do not count tokens");
}

} // namespace
