// Recognises one tag of HTML.
#pragma once

#include <string_view>

namespace mindllm {

enum class Tag {
    NONE,    // is none
    INLINE,  // a word goes on behind it
    BLOCK,   // ends a word
    SCRIPT,  // opens <script>
    STYLE,   // opens <style>
};

// Of what stands between < and >, which must not hold either. Strict, since text and code have angle brackets of their
// own (a<b, List<T>, <path>): the name is one of HTML's, attributes are `name` or `name=value` and one at least has a
// value, and names that are words which people put between brackets count only with attributes or when closing.
Tag parse_tag(std::string_view inside);

}  // namespace mindllm
