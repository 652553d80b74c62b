// manifest.json: schema flexq-ft/manifest/1, every field checked where it stands.
#pragma once

#include "ft/weights/json.h"
#include "ft/weights/model_folder.h"

namespace flexq_ft {

// Fills everything but path. What several fields say together (the shards of the heads, the shapes
// of the files) is left to open_model_folder.
ModelFolder read_manifest(const JsonDocument& document);

}  // namespace flexq_ft
