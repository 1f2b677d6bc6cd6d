// Makes the SentencePiece models of "others" in this folder: small, of made-up words, without a piece for line ends.
//   g++ -std=c++20 make_models.cpp -lsentencepiece_train -lsentencepiece && ./a.out     (SentencePiece 0.1.97)

#include <sentencepiece_trainer.h>

#include <cstdlib>
#include <fstream>
#include <iostream>
#include <string>
#include <unordered_map>
#include <vector>

class Lines : public sentencepiece::SentenceIterator {
 public:
  Lines() {
    for (const char* first : {"b", "d", "k", "l", "m"})
      for (const char* middle : {"ona", "uri"})
        for (const char* last : {"ven", "t"}) lines_.push_back(std::string(first) + middle + last + " buriven");
  }
  bool done() const override { return at_ == lines_.size(); }
  void Next() override { ++at_; }
  const std::string& value() const override { return lines_[at_]; }
  sentencepiece::util::Status status() const override { return {}; }

 private:
  std::vector<std::string> lines_;
  std::size_t at_ = 0;
};

void make(const std::string& file, std::unordered_map<std::string, std::string> settings) {
  settings.merge(std::unordered_map<std::string, std::string>{
      {"vocab_size", "30"}, {"hard_vocab_limit", "false"}, {"normalization_rule_name", "identity"}, {"minloglevel", "2"}});
  Lines lines;
  std::string model;
  const auto status = sentencepiece::SentencePieceTrainer::Train(settings, &lines, &model);
  if (!status.ok()) {
    std::cerr << status.ToString() << "\n";
    std::exit(1);
  }
  std::ofstream(file, std::ios::binary) << model;
}

int main() {
  make("no_line_end.model", {{"pad_id", "0"}, {"bos_id", "1"}, {"eos_id", "2"}, {"unk_id", "3"}});
  make("other_special_ids.model", {});
}
