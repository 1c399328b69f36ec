// libcurand.so.10: onnxruntime is linked with it and calls nothing of it.
extern "C" int curandCreateGenerator() { return 1; }
