// What a text is made of: the counts by which the corpus pipeline judges its quality, its language and its decoding.
#pragma once

#include <cstdint>
#include <string_view>

namespace mindllm {

// All in characters unless it says otherwise.
struct TextProfile {
    int64_t characters = 0;
    int64_t ascii = 0;
    int64_t spaces = 0;  // and tabs and newlines
    int64_t counted = 0;  // of a run of one character the first three: rules and indents are layout
    int64_t text = 0;     // of the counted, letters of any script, digits, spaces, punctuation and / % & + =
    int64_t han = 0;
    int64_t kana = 0;
    int64_t hangul = 0;
    int64_t latin = 0;  // with and without accents
    int64_t accented = 0;  // of the Latin letters, those that are not ASCII
    int64_t other_letters = 0;
    int64_t words = 0;         // runs of Latin or other letters and digits
    int64_t digit_groups = 0;  // runs of 7 to 15 digits, single spaces, dots and hyphens between them allowed

    // Signs of a wrong decoding.
    int64_t lost = 0;           // U+FFFD, private use, 锟斤拷, 烫烫烫, 屯屯屯: the text that was here is gone
    int64_t utf8_as_latin = 0;  // in sequences that are UTF-8 if read as bytes of Latin-1 or Windows-1252
    int64_t high_latin = 0;     // U+0080-U+00FF and what Windows-1252 has in place of controls
};

// One linear pass over valid UTF-8.
TextProfile profile_text(std::string_view text);

}  // namespace mindllm
