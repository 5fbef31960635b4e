#pragma once
// Inside net: the text of HTTP/1.1 answers. Pure.
#include <string>

#include "net/net.h"

namespace muster::net {

enum class Framing { Length, LengthOnly /* HEAD, 204, 304 */, Chunked, UntilClose };
// Line ends in header values are dropped: a value can never become a second header.
std::string http_head(const Response& response, Framing framing, bool keep_alive);
std::string chunk_head(std::size_t size);
bool has_body(int status);
bool has_token(const std::string& list, std::string_view token);  // comma list, any case
bool may_repeat(const std::string& lower_name);                   // headers that a request may carry more than once

}  // namespace muster::net
