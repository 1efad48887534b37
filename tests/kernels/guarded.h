#pragma once
#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>

// Memory behind which there is none.
template <class T>
class Guarded {
public:
    explicit Guarded(size_t count) : count_(count) {
        const size_t page = sysconf(_SC_PAGESIZE), bytes = (count * sizeof(T) + page - 1) / page * page;
        size_ = bytes + page;
        base_ = static_cast<char*>(mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
        mprotect(base_ + bytes, page, PROT_NONE);
        data_ = reinterpret_cast<T*>(base_ + bytes - count * sizeof(T));
    }
    ~Guarded() { munmap(base_, size_); }
    Guarded(const Guarded&) = delete;
    T& operator[](size_t i) { return data_[i]; }
    T* data() { return data_; }
    size_t size() const { return count_; }

private:
    size_t count_, size_;
    char* base_;
    T* data_;
};
