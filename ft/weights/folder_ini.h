// A folder's config.ini: FasterTransformer's keys and ours, as one table that both reads them and
// compares them with a manifest.
#pragma once

#include "ft/weights/ini.h"
#include "ft/weights/model_folder.h"

namespace flexq_ft {

// The model that the INI describes, where there is no manifest. tp is 0 if the INI does not say;
// tie_word_embeddings is what the INI says, or false. Nothing is validated beyond each key.
ModelFolder read_folder_ini(const IniFile& ini);

// Throws Error{kWeight} naming the first key on which the INI and the manifest's model differ, and
// both values.
void check_folder_ini_agrees(const IniFile& ini, const ModelFolder& manifest);

}  // namespace flexq_ft
