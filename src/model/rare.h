#pragma once
// A value that is the default one nearly always, in the size of a pointer: a platform holds a million clusters that
// wait, and what only running ones have need not be there. Copies and compares as the value does. Never null to whoever
// reads it. As thread-safe as the value.
#include <memory>
#include <utility>

namespace muster {

template <class T>
class Rare {
 public:
  Rare() = default;
  Rare(T value) { *this = std::move(value); }  // NOLINT(google-explicit-constructor): it stands for the value
  Rare(const Rare& other) : value_(other.value_ ? std::make_unique<T>(*other.value_) : nullptr) {}
  Rare(Rare&&) noexcept = default;
  Rare& operator=(const Rare& other) {
    if (this != &other) value_ = other.value_ ? std::make_unique<T>(*other.value_) : nullptr;
    return *this;
  }
  Rare& operator=(Rare&&) noexcept = default;
  Rare& operator=(T value) {
    if (value == T{})
      value_.reset();
    else
      value_ = std::make_unique<T>(std::move(value));
    return *this;
  }
  ~Rare() = default;

  const T& get() const {
    static const T usual{};
    return value_ ? *value_ : usual;
  }
  operator const T&() const { return get(); }  // NOLINT(google-explicit-constructor)
  const T* operator->() const { return &get(); }
  T& change() {  // to be filled
    if (!value_) value_ = std::make_unique<T>();
    return *value_;
  }
  bool operator==(const Rare& other) const { return get() == other.get(); }

 private:
  std::unique_ptr<T> value_;
};

}  // namespace muster
