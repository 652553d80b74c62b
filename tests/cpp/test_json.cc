#include "ft/weights/json.h"

#include <string>

#include "ft/weights/json_fields.h"
#include "ft/weights/text.h"
#include "tests/cpp/check.h"
#include "tests/cpp/fuzz.h"

using namespace flexq_ft;

namespace {

JsonValue parse(const std::string& text) { return parse_json(text, "t.json").root; }

template <typename T>
T value(const std::string& text) {
  const JsonValue parsed = parse(text);
  const T* data = parsed.get<T>();
  if (data == nullptr) throw std::runtime_error(text + " is " + parsed.type_name());
  return *data;
}

}  // namespace

TEST(integers_are_exact_to_the_ends_of_int64) {
  EXPECT_EQ(value<int64_t>("9223372036854775807"), INT64_MAX);
  EXPECT_EQ(value<int64_t>("-9223372036854775808"), INT64_MIN);
  EXPECT_EQ(value<double>("9223372036854775808"), 9223372036854775808.0);
  EXPECT_EQ(value<int64_t>("-0"), 0);
  EXPECT_EQ(value<double>("1.0"), 1.0);
  EXPECT_EQ(value<double>("1e-05"), 1e-05);
  EXPECT_EQ(value<double>("-2.5E+3"), -2500.0);
}

TEST(numbers_that_json_does_not_know_are_refused) {
  for (const char* text : {"01", "+1", ".5", "1.", "1e", "0x10", "NaN", "Infinity", "-", "1e400"}) {
    EXPECT_THROW(parse(text), Error, "t.json:1:");
  }
}

TEST(strings_keep_every_character) {
  EXPECT_EQ(value<std::string>(R"("a\"\\\/\b\f\n\r\tz")"), "a\"\\/\b\f\n\r\tz");
  EXPECT_EQ(value<std::string>(R"("\u00e9\u20AC\ud83d\ude00")"),
            "\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80");
  EXPECT_EQ(value<std::string>("\"\xc3\xa9\""), "\xc3\xa9");
  EXPECT_EQ(value<std::string>(R"("a\u0000b")").size(), size_t{3});
  EXPECT_THROW(parse(R"("\ud83d")"), Error, "surrogate");
  EXPECT_THROW(parse(R"("\ude00")"), Error, "surrogate");
  EXPECT_THROW(parse(R"("\ud83d\u0041")"), Error, "surrogate");
  EXPECT_THROW(parse("\"a\nb\""), Error, "control character");
  EXPECT_THROW(parse(R"("\x41")"), Error, "unknown escape");
  EXPECT_THROW(parse(R"("\u12g4")"), Error, "hexadecimal");
}

TEST(bytes_that_are_not_utf8_are_refused) {
  for (const char* text : {"\"\x80\"", "\"\xc0\xaf\"", "\"\xe0\x80\x80\"", "\"\xed\xa0\x80\"",
                           "\"\xf4\x90\x80\x80\"", "\"\xf8\x88\x80\x80\x80\"", "\"\xc3\""}) {
    EXPECT_THROW(parse(text), Error, "t.json:1:2: invalid UTF-8");
  }
}

TEST(a_fault_is_shown_with_line_and_column) {
  EXPECT_THROW(parse("{\n  \"a\": 1,\n  \"b\": tru\n}"), Error, "t.json:3:8: not a JSON value");
  EXPECT_THROW(parse("{\"a\": 1"), Error, "t.json:1:8: ',' or '}' expected");
  EXPECT_THROW(parse("[1, 2] 3"), Error, "t.json:1:8: text after the end");
  EXPECT_THROW(parse("[1,]"), Error, "t.json:1:4: not a JSON value");
  EXPECT_THROW(parse(""), Error, "the text ends");
  EXPECT_THROW(parse("{a: 1}"), Error, "a key in quotes");
}

TEST(a_key_given_twice_is_an_error_that_names_both) {
  EXPECT_THROW(parse("{\"a\": 1,\n\"b\": 2,\n\"a\": 3}"), Error,
               "t.json:3:6: key 'a' was already given on line 1");
}

TEST(depth_is_bounded) {
  const auto nested = [](int depth) {
    return std::string(static_cast<size_t>(depth), '[') +
           std::string(static_cast<size_t>(depth), ']');
  };
  parse(nested(kMaxJsonDepth));
  EXPECT_THROW(parse(nested(kMaxJsonDepth + 1)), Error, "nested deeper than 32");
  EXPECT_THROW(parse(std::string(1 << 20, '[')), Error, "nested deeper than 32");
}

TEST(the_number_of_values_is_bounded) {
  std::string text = "[0";
  for (size_t i = 0; i < kMaxJsonValues; ++i) text += ",0";
  EXPECT_THROW(parse(text + "]"), Error, "values");
}

TEST(members_keep_the_order_of_the_file) {
  const auto object = value<JsonValue::Object>(R"({"z": 1, "a": [true, false, null]})");
  EXPECT_EQ(object.size(), size_t{2});
  EXPECT_EQ(object[0].key, "z");
  const auto* array = object[1].value.get<JsonValue::Array>();
  EXPECT(array != nullptr && array->size() == 3);
  EXPECT((*array)[2].is_null());
}

TEST(fields_name_the_place_the_value_and_the_range) {
  const JsonDocument document = parse_json(
      R"({"layers": 5000, "ratio": "x", "nmae": 1, "kind": "gguff", "big": 1e30})", "t.json");
  JsonFields fields(document, document.root, "model");
  EXPECT_THROW(fields.integer("layers", 1, 1024), Error,
               "t.json:1:12: model.layers is 5000, allowed are 1 to 1024");
  EXPECT_THROW(fields.number("ratio"), Error, "model.ratio must be a number, not a string");
  EXPECT_THROW(fields.integer("big", 0, 10), Error, "must be an integer from 0 to 10");
  EXPECT_THROW(fields.text("absent"), Error, "model.absent is missing");
  EXPECT_THROW(fields.choice("kind", {"gguf", "ft"}), Error, "is 'gguff', allowed are gguf, ft");
  fields.optional("name");
  EXPECT_THROW(fields.finish(), Error, "model.nmae is an unknown key; did you mean 'name'?");
}

TEST(numbers_in_text_are_whole_or_refused) {
  int64_t integer = 7;
  EXPECT(!parse_integer("9223372036854775808", &integer));
  EXPECT(!parse_integer("12x", &integer) && !parse_integer("", &integer));
  EXPECT(!parse_integer("-", &integer) && !parse_integer("010", &integer));
  double number = 0;
  EXPECT(parse_number(".5", &number) && number == 0.5);
  EXPECT(!parse_number("1e", &number) && !parse_number("inf", &number));
  EXPECT(!parse_number("nan", &number) && !parse_number("1e999", &number));
  EXPECT_EQ(with_commas(16777216), "16,777,216");
  EXPECT_EQ(with_commas(999), "999");
}

TEST(mutated_documents_give_a_value_or_an_error) {
  const std::string text =
      R"({"a": [1, -2.5e3, true, null, {"b\u00e9\ud83d\ude00": "é"}], "c": {}, "d": "x\ny"})";
  const int accepted =
      flexq_test::fuzz(text, 20000, ErrorKind::kWeight,
                       [](const std::string& mutant) { parse_json(mutant, "t.json"); });
  EXPECT(accepted > 100 && accepted < 20000);
}
