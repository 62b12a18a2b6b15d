
{
  const data = JSON.parse(document.getElementById("data").textContent);
  document.getElementById("words").append(explainedWords(document.getElementById("picture"), data));
}
