// Checkboxes below "switches" show and hide the groups of columns that they name.
for (const box of document.querySelectorAll(".switches input")) {
  const show = () => {
    for (const cell of document.querySelectorAll(`[data-group="${box.value}"]`)) {
      cell.hidden = !box.checked;
    }
  };
  box.addEventListener("change", show);
  show();
}
