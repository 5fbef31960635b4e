#pragma once
// The package databases of rpm, in the three forms that images have: a table of SQLite (since 2020), ndb (SUSE) and a
// hash of Berkeley DB (before). Each holds one header a package, as rpm's file format has it. Only what a list needs is
// read, by offsets that are checked one by one: the file is as hostile as its image. Pure.
// Sources: https://www.sqlite.org/fileformat2.html, rpm's lib/backend/ndb/rpmpkg.c and its docs/manual/format.md,
// Berkeley DB's dbinc/db_page.h.
#include <cstddef>
#include <string_view>

namespace muster::scan {

struct Inventory;

inline constexpr std::size_t kRpmHeaderMax = 32 << 20;

bool is_rpm_database(std::string_view path);  // "var/lib/rpm/rpmdb.sqlite", "usr/lib/sysimage/rpm/Packages.db", ...
bool is_rpm_family(std::string_view family);  // of an OSV ecosystem: "AlmaLinux", "SUSE"
// Adds the packages of one database; what cannot be read counts as skipped, and so does a file that is none.
void take_rpm(Inventory& inventory, std::string_view bytes);

}  // namespace muster::scan
