// libc10 and SentencePiece both export a variable of this name: an int, and an object of 32 bytes. The dynamic linker gives
// both the one that it finds first. Where that was libc10's, SentencePiece's start-up wrote past it, over a mutex, and the
// program's first TorchScript call waited for ever. This library is found before either and has room for the larger one;
// libc10 itself does no more than store a parsed command-line flag there.
extern "C" {
// NOLINTNEXTLINE(readability-identifier-naming): the libraries' name for it.
[[gnu::visibility("default")]] alignas(16) char FLAGS_minloglevel[64] = {};
}
