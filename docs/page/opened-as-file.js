// No module: browsers refuse modules, and fetch, to a page that was opened as a file.
"use strict";
document.getElementById("opened-as-file").hidden = location.protocol !== "file:";
