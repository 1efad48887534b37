// The part of ONNX Runtime's C interface that a custom operator needs.
//
// The interface is a table of functions that only ever grows at its end, so an index means the same function in every later
// version. Each index here is proved by a test against the ONNX Runtime that is installed.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ort {

struct Status;
struct Value;
struct TensorInfo;
struct KernelInfo;
struct KernelContext;
struct SessionOptions;
struct Domain;

constexpr uint32_t VERSION = 17;  // the first whose operators get what they need to run in parallel

struct ApiBase {
    const void* const* (*get_api)(uint32_t version);  // null where the version is newer than the runtime
    const char* (*get_version)();
};

enum ElementType : int { FLOAT = 1, UINT8 = 2, INT8 = 3, INT32 = 6 };
enum Characteristic : int { REQUIRED, OPTIONAL };
enum ErrorCode : int { FAIL = 1, INVALID_ARGUMENT = 2 };

// `OrtCustomOp` of version 17; what is null is not used by operators that have the functions of the second version.
struct CustomOp {
    uint32_t version = VERSION;
    void* (*create)(const CustomOp*, const void* const* api, const KernelInfo*) = nullptr;
    const char* (*name)(const CustomOp*) = nullptr;
    const char* (*provider)(const CustomOp*) = nullptr;
    int (*input_type)(const CustomOp*, size_t) = nullptr;
    size_t (*input_count)(const CustomOp*) = nullptr;
    int (*output_type)(const CustomOp*, size_t) = nullptr;
    size_t (*output_count)(const CustomOp*) = nullptr;
    void (*compute)(void*, KernelContext*) = nullptr;
    void (*destroy)(void*) = nullptr;
    int (*input_characteristic)(const CustomOp*, size_t) = nullptr;
    int (*output_characteristic)(const CustomOp*, size_t) = nullptr;
    int (*input_memory)(const CustomOp*, size_t) = nullptr;
    int (*variadic_input_min)(const CustomOp*) = nullptr;
    int (*variadic_input_homogeneous)(const CustomOp*) = nullptr;
    int (*variadic_output_min)(const CustomOp*) = nullptr;
    int (*variadic_output_homogeneous)(const CustomOp*) = nullptr;
    Status* (*create_v2)(const CustomOp*, const void* const* api, const KernelInfo*, void** kernel) = nullptr;
    Status* (*compute_v2)(void* kernel, KernelContext*) = nullptr;
    Status* (*infer_shapes)(const CustomOp*, void*) = nullptr;
    int (*start_version)(const CustomOp*) = nullptr;
    int (*end_version)(const CustomOp*) = nullptr;
};
static_assert(sizeof(CustomOp) == 176, "OrtCustomOp has another size");

// The functions, by their place in the table.
class Api {
public:
    explicit Api(const void* const* table) : table_(table) {}

    Status* error(ErrorCode code, const char* message) const { return call<Status*>(0, static_cast<int>(code), message); }
    Status* create_domain(const char* name, Domain** out) const { return call<Status*>(26, name, out); }
    Status* add_operator(Domain* domain, const CustomOp* op) const { return call<Status*>(27, domain, op); }
    Status* add_domain(SessionOptions* options, Domain* domain) const { return call<Status*>(28, options, domain); }
    Status* data(const Value* value, void** out) const { return call<Status*>(51, value, out); }
    Status* rank(const TensorInfo* info, size_t* out) const { return call<Status*>(61, info, out); }
    Status* shape(const TensorInfo* info, int64_t* out, size_t n) const { return call<Status*>(62, info, out, n); }
    Status* tensor_info(const Value* value, TensorInfo** out) const { return call<Status*>(65, value, out); }
    Status* attribute(const KernelInfo* info, const char* name, float* out) const { return call<Status*>(85, info, name, out); }
    Status* attribute(const KernelInfo* info, const char* name, int64_t* out) const { return call<Status*>(86, info, name, out); }
    Status* input(const KernelContext* context, size_t i, const Value** out) const { return call<Status*>(90, context, i, out); }
    Status* output(KernelContext* context, size_t i, const int64_t* shape, size_t n, Value** out) const {
        return call<Status*>(91, context, i, shape, n, out);
    }
    void release(TensorInfo* info) const { call<void>(99, info); }
    // runs METHOD(0) to METHOD(count - 1) of an object on the session's threads and waits for them
    template <auto METHOD, class T>
    Status* parallel(const KernelContext* context, T& object, size_t count) const {
        void (*const task)(void*, size_t) = [](void* user, size_t i) { (static_cast<T*>(user)->*METHOD)(i); };
        return call<Status*>(274, context, task, count, size_t{0}, static_cast<void*>(&object));
    }

private:
    template <class Result, class... Arguments>
    Result call(size_t index, Arguments... arguments) const {
        return reinterpret_cast<Result (*)(Arguments...)>(const_cast<void*>(table_[index]))(arguments...);
    }

    const void* const* table_;
};

}  // namespace ort
