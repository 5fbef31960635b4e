#include "scan/known_holes.h"

__asm__(
    ".pushsection .rodata\n"
    ".global muster_known_holes_begin\nmuster_known_holes_begin:\n"
    ".incbin \"" MUSTER_SOURCE_DIR
    "/deploy/known-holes.json\"\n"
    ".global muster_known_holes_end\nmuster_known_holes_end:\n"
    ".byte 0\n"
    ".popsection\n");
extern "C" const char muster_known_holes_begin[];
extern "C" const char muster_known_holes_end[];

namespace muster::scan {

std::string_view built_in_holes_text() {
  return {muster_known_holes_begin, static_cast<std::size_t>(muster_known_holes_end - muster_known_holes_begin)};
}

}  // namespace muster::scan
