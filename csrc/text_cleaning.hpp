// Cleans the format of a text in one pass: what is not text goes (controls, emoji, remnants of HTML), invisible
// characters become spaces, and superfluous space is reduced. Traditional characters, compatibility forms, indentation
// and the order of all that stays are left alone.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace mindllm {

// How many characters of each kind a text has lost (of `markup`: how many tags, comments and entities).
struct CleaningCounts {
    int64_t control = 0;
    int64_t emoji = 0;
    int64_t invisible = 0;  // and exotic spaces: what became a space
    int64_t markup = 0;
    int64_t chinese_spaces = 0;
    int64_t trailing_spaces = 0;
    int64_t blank_lines = 0;  // and line breaks at the end
};

// The cleaned text, of valid UTF-8. Time is linear in the text's length, memory that of the result.
//
// - Controls and noncharacters go; \r\n, \r, \v, \f, U+0085, U+2028 and U+2029 become \n.
// - Emoji go, with all that belongs to their sequence; © ® ™, digits and signs that are text by default stay.
// - Spaces of other widths become U+0020. What has no width becomes a space where none is and a word follows. Variation
//   selectors go.
// - Spaces between two Chinese characters go, punctuation included, but not those that indent a line.
// - Tags of HTML on one line, <script> and <style> with their content, comments and &nbsp; go; those between fences (```)
//   and behind a ` stay, since there they are what the text is about.
// - Spaces and tabs at the ends of lines go, all but two of a run of blank lines, and breaks at both ends of a text.
//
// What comes out is not changed by another pass.
std::string clean_format(std::string_view text, CleaningCounts& counts);

}  // namespace mindllm
